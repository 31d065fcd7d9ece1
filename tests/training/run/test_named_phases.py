"""Phases with names of the recipe's own, trained one after the other: branches, chains, folders, and bad input."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.evaluation.run import evaluate_run
from dist_metaxlm.launching.arguments import from_override
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.reporting.summary import build_summary
from dist_metaxlm.training.checkpointing.manifest import list_steps
from dist_metaxlm.training.pretrain import Options, pretrain
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.trained_phase import phase_checkpoint

MLM = "objectives: [{name: mlm, batch_tokens: 256}]"
PHASES = (
    "training.keep_checkpoints=1",
    f"phases.decay={{from: meta@2, steps: 4, {MLM}, carry_over: {{optimizer: carry, schedule: continue}}, "
    "learning_rate: {peak: 3.0e-3, warmup_steps: 2, schedule: wsd, decay_steps: 4}}",
    f"phases.last-1={{from: decay, steps: 2, {MLM}}}",
)


def train(recipe: Path, phase: str, run_dir: Path, *more: str, source: str | None = None) -> str:
    log = io.StringIO()
    overrides = (*PHASES, *more, *from_override(phase, source))
    with redirect_stdout(log):
        pretrain(Options(phase, str(recipe), overrides, run_dir=str(run_dir)), HeldoutProbe, HeldoutLoss)
    return log.getvalue()


@pytest.fixture(scope="module")
def trained(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("named")
    return run_dir, "".join(train(tiny_recipe, phase, run_dir) for phase in ("meta", "decay", "last-1"))


def test_a_branch_starts_from_its_checkpoint_which_stays(trained: tuple[Path, str]) -> None:
    run_dir, log = trained
    assert list_steps(run_dir / "meta" / "checkpoints") == [2, 8]
    report = json.loads((run_dir / "decay" / "carry_over.json").read_text(encoding="utf-8"))
    assert (report["phase"], report["step"], report["pinned"]) == ("meta", 2, True)
    assert "meta -> decay changes" in log
    facts = phase_checkpoint(run_dir, "decay")[1].facts
    assert facts["schedule_offset"] == 2
    assert facts["adam_step"] == 6, "Adam's count goes on from step 2"
    rates = [json.loads(line)["learning_rate"] for line in (run_dir / "decay" / "metrics.jsonl").open(encoding="utf-8")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 3e-3, "the decay begins with the phase"


def test_a_chain_of_phases_adds_up_what_was_seen(trained: tuple[Path, str]) -> None:
    run_dir, _ = trained
    report = json.loads((run_dir / "last-1" / "carry_over.json").read_text(encoding="utf-8"))
    assert (report["phase"], report["step"], report["pinned"]) == ("decay", 4, False)
    before, after = (phase_checkpoint(run_dir, name)[1].tensors("progress")["seen"] for name in ("meta@2", "last-1"))
    assert torch.all(after >= before)


def test_everything_else_follows(trained: tuple[Path, str]) -> None:
    run_dir, _ = trained
    evaluate_run(run_dir, "last-1", ["perplexity"])
    evaluate_run(run_dir, "decay@4", ["perplexity"])
    summary = build_summary(run_dir)
    assert list(summary["phases"]) == ["meta", "decay", "last-1"]
    assert list(summary["evaluation"]) == ["decay@4", "last-1"]
    with pytest.raises(UserError, match=r"unknown phase 'dacay'; choose from untrained, .*decay, last-1"):
        evaluate_run(run_dir, "dacay", ["perplexity"])


def test_a_phase_of_another_run_is_a_folder(trained: tuple[Path, str], tiny_recipe: Path, tmp_path: Path) -> None:
    run_dir, _ = trained
    source = f"{run_dir / 'meta'}@2"
    train(tiny_recipe, "decay", tmp_path / "run", source=source)
    same = [phase_checkpoint(folder, "decay")[1].tensors("weights") for folder in (run_dir, tmp_path / "run")]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert json.loads((tmp_path / "run" / "decay" / "carry_over.json").read_text(encoding="utf-8"))["phase"] is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{run}/meta@4", r"which has no such checkpoint \(it has those of 2 steps: 2, 8\)"),
        ("{run}/meta@best", r"none has a held-out loss; train that phase with training.heldout_interval"),
        ("{run}", r"is the folder of a run; name one of its phases, such as .*/decay"),
        ("{run}/mete", r"there is no such folder; correct the path"),
        ("{new}/decay", r"there is no such folder|would continue from itself"),
        ("meta", r"--phase decay continues from a finished meta phase, and .* holds none; run"),
        ("decay", r"phases.decay is its own ancestor"),
    ],
)
def test_bad_sources_change_nothing(
    trained: tuple[Path, str], tiny_recipe: Path, tmp_path: Path, source: str, words: str
) -> None:
    new = tmp_path / "new"
    with pytest.raises(UserError, match=words):
        train(tiny_recipe, "decay", new, source=source.format(run=trained[0], new=new))
    assert not PhaseFolder(new, "decay").path.exists()


def test_continuing_with_another_source_is_refused(trained: tuple[Path, str], tiny_recipe: Path) -> None:
    run_dir, _ = trained
    with pytest.raises(UserError, match=r"phases.decay.from was meta@2, now nothing; resume with the old values"):
        train(tiny_recipe, "decay", run_dir, source="nothing")


@pytest.mark.parametrize("name", ["three-stages", "decay-branch"])
def test_the_shipped_recipes_with_phases_of_their_own(name: str, tiny_recipe: Path, tmp_path: Path) -> None:
    """Their phases on a small corpus and model, a few steps each."""
    shipped, small = (yaml.safe_load(text) for text in (dump_recipe(load_recipe(name)), tiny_recipe.read_text("utf-8")))
    shipped |= {"data": small["data"]}
    shipped["model"] |= {"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": small["model"]["vocab_size"]}
    shipped["training"] |= {"heldout_interval": 0, "log_interval": 2, "checkpoint_interval": 2}
    for phase in shipped["phases"].values():
        phase |= {"steps": 4, "languages": "all" if phase["languages"] == "all" else ["en", "de"]}
        phase |= {"sequence_length": phase["sequence_length"] // 4}
        phase["objectives"][0]["batch_tokens"] = 256
        phase["learning_rate"]["warmup_steps"] = 1
        phase["from"] = "meta@2" if "@" in (phase["from"] or "") else phase["from"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shipped, sort_keys=False), encoding="utf-8")
    for phase in shipped["phases"]:
        pretrain(Options(phase, str(tmp_path / "small.yaml"), run_dir=str(tmp_path)), HeldoutProbe, HeldoutLoss)
    last = list(shipped["phases"])[-1]
    assert phase_checkpoint(tmp_path, last)[1].facts["adam_step"] == (12 if name == "three-stages" else 8)
