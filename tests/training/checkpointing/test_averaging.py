"""`metaxlm convert average`: a phase like any other, made of the mean of checkpoints."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from dist_metaxlm.api import export
from dist_metaxlm.cli import convert
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.evaluation.run import evaluate_run
from dist_metaxlm.reporting.summary import build_summary
from dist_metaxlm.training.pretrain import Options, pretrain
from dist_metaxlm.training.run.trained_phase import phase_checkpoint

FIELDS = ("training.checkpoint_interval=2", "training.keep_checkpoints=9")


def command(*words: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        convert.main(["average", *words])
    return out.getvalue()


def train(recipe: Path, run_dir: Path, phase: str, *more: str) -> None:
    with redirect_stdout(io.StringIO()):
        pretrain(Options(phase, str(recipe), (*FIELDS, *more), run_dir=str(run_dir)), HeldoutProbe, HeldoutLoss)


@pytest.fixture(scope="module")
def run_dir(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged")
    train(tiny_recipe, folder, "meta")
    return folder


@pytest.fixture(scope="module")
def averaged(run_dir: Path) -> dict[str, object]:
    return json.loads(command("--run_dir", str(run_dir), "--phase", "meta", "--last", "3", "--name", "mean", "--json"))


def test_it_is_the_mean_and_a_phase_like_any_other(run_dir: Path, averaged: dict[str, object], tmp_path: Path) -> None:
    assert averaged["checkpoints"] == ["meta@4", "meta@6", "meta@8"]
    mean = phase_checkpoint(run_dir, "mean")[1].tensors("weights")
    parts = [phase_checkpoint(run_dir, f"meta@{step}")[1].tensors("weights") for step in (4, 6, 8)]
    assert set(mean) == set(parts[0])
    for name in mean:
        wanted = torch.stack([part[name].double() for part in parts]).mean(0).float()
        assert torch.equal(mean[name], wanted), name
    result = evaluate_run(run_dir, "mean", ["perplexity"])
    assert result["languages"] == ["en"]
    assert result["perplexity"] != evaluate_run(run_dir, "meta", ["perplexity"])["perplexity"]
    assert list(build_summary(run_dir)["evaluation"]) == ["meta", "mean"]
    assert export(run_dir, "mean", tmp_path / "exported")["parameters"] > 0


def test_another_phase_starts_from_it_and_it_is_not_trained_further(
    run_dir: Path, averaged: dict[str, object], tiny_recipe: Path
) -> None:
    source = f"phases.cross.from={run_dir}/mean"
    train(tiny_recipe, run_dir, "cross", source, "phases.cross.steps=2")
    assert json.loads((run_dir / "cross" / "carry_over.json").read_text(encoding="utf-8"))["phase"] == "mean"
    with pytest.raises(UserError, match=r"which has no moments; set phases.joint.carry_over=\{optimizer: reset\}"):
        train(tiny_recipe, run_dir, "joint", f"phases.joint.from={run_dir}/mean", "carry_over.optimizer=carry")
    recipe = run_dir / "mean" / "recipe.yaml"
    with pytest.raises(UserError, match="is an average of checkpoints and cannot be trained further"):
        pretrain(
            Options("mean", str(recipe), ("phases.mean.steps=20",), run_dir=str(run_dir), change=True),
            HeldoutProbe,
            HeldoutLoss,
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--phase", "meta", "--last", "9", "--name", "a"], r"has 4 checkpoints \(2, 4, 6, 8\); give a smaller number"),
        (["--phase", "meta", "--last", "1", "--name", "a"], "--last 1 is no average"),
        (["--checkpoints", "meta@4", "--name", "a"], "needs at least two different checkpoints"),
        (["--checkpoints", "meta@8", "meta", "--name", "a"], "two of these are the same checkpoint"),
        (["--checkpoints", "meta@4", "meta@5", "--name", "a"], "has no intact checkpoint of step 5; it has 2, 4, 6, 8"),
        (["--checkpoints", "meta@4", "meta@6", "--name", "meta"], "exists and is no average; choose another name"),
        (["--checkpoints", "meta@4", "meta@6", "--name", "mean"], "is an earlier average; give --overwrite"),
        (["--checkpoints", "meta@4", "meta@6", "--name", "../x"], "cannot name a phase"),
        (["--phase", "meta", "--name", "a"], "give either --phase and --last, or --checkpoints"),
    ],
)
def test_bad_requests_write_nothing(run_dir: Path, averaged: dict[str, object], words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        command("--run_dir", str(run_dir), *words)
    assert not (run_dir / "a").exists()
    assert not list(run_dir.glob(".*.tmp"))
