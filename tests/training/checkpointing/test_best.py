"""`training.keep_best`: the checkpoint with the best held-out loss stays, and commands can name it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.evaluation.run import evaluate_run
from dist_metaxlm.recipe.origins import split_mark
from dist_metaxlm.training.checkpointing.manifest import best_step, list_steps, write_manifest
from dist_metaxlm.training.pretrain import Options, pretrain
from dist_metaxlm.training.run.trained_phase import phase_checkpoint

FIELDS = ("training.log_interval=2", "training.checkpoint_interval=2", "training.heldout_interval=2")


def scripted(figures):
    """A held-out measurement with given figures, one after the other."""
    left = iter(figures)

    def measure(read, device):
        return {"bits_per_byte": next(left), "languages": {}, "word_frequencies": None, "sample": "s"}

    return lambda recipe, phase: measure


@pytest.fixture(scope="module")
def trained(tiny_recipe, tmp_path_factory):
    """Folder and log of a run whose held-out loss is best at step 4, and as good at the last step."""
    folder, log = tmp_path_factory.mktemp("best"), io.StringIO()
    asked = (*FIELDS, "training.keep_best=true", "training.keep_checkpoints=1")
    options = Options("meta", str(tiny_recipe), asked, run_dir=str(folder))
    with redirect_stdout(log):
        pretrain(options, HeldoutProbe, scripted([3.0, 1.0, 2.0, 1.0]))
    return folder, log.getvalue()


@pytest.fixture
def run_dir(trained):
    return trained[0]


def test_the_best_checkpoint_stays(trained):
    run_dir, log = trained
    checkpoints = run_dir / "meta" / "checkpoints"
    assert list_steps(checkpoints) == [4, 8]
    assert best_step(checkpoints) == (4, 1.0), "the earlier one of equal figures"
    assert "checkpoint of step 4 has the best held-out loss so far, 1.000 bits per byte" in log
    assert "step 8 has the best" not in log
    assert "best held-out loss: 1.000 bits per byte at step 4; evaluate or export that checkpoint" in log


def test_commands_name_it(run_dir):
    assert phase_checkpoint(run_dir, "meta")[1].step == 8
    assert phase_checkpoint(run_dir, "meta@best")[1].step == 4
    assert phase_checkpoint(run_dir, "meta@8")[1].step == 8
    result = evaluate_run(run_dir, "meta@best", ["perplexity"])
    assert result["phase"] == "meta@best"
    assert json.loads((run_dir / "evaluation" / "meta@best.json").read_text(encoding="utf-8")) == result
    assert result["perplexity"] != evaluate_run(run_dir, "meta", ["perplexity"])["perplexity"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("meta@6", "meta@6: .* has no intact checkpoint of step 6; it has 4, 8"),
        ("meta@last", "meta@last: after the @ comes the step of a checkpoint or `best`, such as meta@best"),
        ("other@best", "unknown phase 'other@best'"),
    ],
)
def test_a_checkpoint_that_does_not_exist_is_named(run_dir, name, words):
    with pytest.raises(UserError, match=words):
        evaluate_run(run_dir, name, ["perplexity"])


def test_without_figures_there_is_no_best_one(tiny_recipe, tmp_path):
    pretrain(Options("meta", str(tiny_recipe), ("phases.meta.steps=2",), run_dir=str(tmp_path)), HeldoutProbe, scripted([]))
    with pytest.raises(UserError, match=r"meta@best: no checkpoint in .* has a held-out loss"):
        phase_checkpoint(tmp_path, "meta@best")


def test_only_checkpoints_of_the_newest_sample_are_compared(tmp_path: Path):
    for step, figure, sample in (
        (2, 1.0, "old"),
        (4, 3.0, "new"),
        (6, 2.0, "new"),
        (8, None, None),
        (10, float("nan"), "new"),
    ):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        facts = {} if figure is None else {"heldout": {"bits_per_byte": figure, "sample": sample}}
        write_manifest(folder, {"step": step, **facts}, {})
    assert best_step(tmp_path) == (6, 2.0)
    assert best_step(tmp_path, 4) == (4, 3.0)
    (tmp_path / "step-00000006" / "manifest.json").write_text("{", encoding="utf-8")
    assert best_step(tmp_path) == (4, 3.0)
    assert best_step(tmp_path / "none") is None


def test_names_of_checkpoints():
    assert split_mark("meta") == ("meta", None)
    assert split_mark("meta@best") == ("meta", "best")
    assert split_mark("cross@40") == ("cross", "40")
