"""Runs with poisoned steps under many layouts, and the curve that each of them must recover, computed by torch alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from plain_optimizers import plain_optimizer

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.storage.tensor_file import TensorsOnDisk
from dist_metaxlm.training.loop.schedule import learning_rate_at

STEPS = 30
# Step 5 is skipped; 10 to 12 send the run back to the checkpoint of step 8, and are stepped over; 28 is a finite spike.
FAULTS = "loss@5:rank1:nan,loss@10-12:rank1:nan,loss@28:rank1:times=1e4"
SKIPPED = (5, 10, 11, 12, 28)
RECIPE = [
    f"phases.joint.steps={STEPS}",
    "phases.joint.objectives=[{name: mlm, batch_tokens: 256}, {name: tlm, batch_tokens: 128, weight: 0.5}]",
    "training.log_interval=1",
    "training.checkpoint_interval=4",
    "training.guards.spikes=skip",
    "model.heads=4",
    "model.vocab_size=383",
]
PRECISIONS = ("fp32", "bf16")
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}
"""Relative difference from the curve in fp32, by precision."""
LAYOUTS = {
    "ZeRO-0": Layout(zero_stage=0),
    "ZeRO-1": Layout(zero_stage=1, micro_batch_tokens=64),
    "ZeRO-2": Layout(zero_stage=2),
    "ZeRO-3": Layout(zero_stage=3, micro_batch_tokens=64),
    "PP2 ZeRO-0": Layout(pipeline=2, zero_stage=0, micro_batch_tokens=64),
    "PP2 ZeRO-1": Layout(pipeline=2, zero_stage=1, micro_batch_tokens=64),
    "TP2 ZeRO-1": Layout(tensor=2, zero_stage=1),
}
CASES = [
    (name, precision)
    for name, layout in LAYOUTS.items()
    for precision in PRECISIONS
    if precision == "fp32" or layout.zero_stage > 0  # ZeRO-0 in half precision is refused
]


def run_poisoned(
    run_ranks: Callable[..., str], recipe: Path, folder: Path, cases: Iterable[tuple[str, str]], faults: str = FAULTS
) -> dict[tuple[str, str], tuple[Path, str]]:
    """(phase folder, sentence with which it ended) of a poisoned run of two ranks under each case."""
    cases, output = list(cases), folder / "results"
    runs = [folder / f"{name} {precision}".replace(" ", "-") for name, precision in cases]
    jobs = [
        {
            "run": str(run),
            "faults": faults,
            "overrides": [*RECIPE, *LAYOUTS[name].overrides(), f"training.precision={precision}"],
        }
        for (name, precision), run in zip(cases, runs, strict=True)
    ]
    job_file = folder / "job.json"
    job_file.write_text(json.dumps({"recipe": str(recipe), "output": str(output), "cases": jobs}))
    run_ranks(2, Path(__file__).with_name("worker_poison.py"), job_file)
    first, second = (json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(2))
    assert first == second, "the ranks ended differently"
    return {case: (run / "joint", sentence) for case, run, sentence in zip(cases, runs, first, strict=True)}


def records(phase: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]


def events(phase: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (phase / "guards.jsonl").read_text().splitlines()]
    return [event for event in every if event["kind"] == kind]


def recovered_curve(recipe_path: Path, skipped: Iterable[int] = SKIPPED) -> list[dict[str, float]]:
    """Losses by objective of each step in one process with torch alone, which leaves the steps `skipped` out."""
    recipe = load_recipe(recipe_path, [*RECIPE, *LAYOUTS["ZeRO-0"].overrides()])
    phase, left_out = recipe.phases["joint"], set(skipped)
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
    plan = StepPlan(phase, "joint", recipe.seed, 0, 1, None)
    model = PretrainingModel(Encoder(recipe.model, recipe.seed), phase.objectives)
    optimizer = plain_optimizer(model, recipe, 0.0)
    curve: list[dict[str, float]] = []
    for step in range(phase.total_steps):
        if step + 1 in left_out:
            curve.append({})
            continue
        means = {}
        for micro in plan.at(step):
            loss, each, _ = model(data.batch(micro.objective, micro.first, micro.count), micro.objective, step)
            (loss * micro.factor).backward()
            means[micro.objective.name] = float(each.double().mean())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, phase.total_steps, phase.learning_rate)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(means)
    return curve


def all_finite(phase: Path) -> bool:
    """Whether every tensor of every checkpoint of a phase is finite."""
    files = list(phase.glob("checkpoints/*/*.safetensors"))
    assert files
    tensors = [tensor for file in files for tensor in TensorsOnDisk([file]).values()]
    return all(bool(torch.isfinite(tensor.float()).all()) for tensor in tensors)


def check_recovery(phase: Path, sentence: str, curve: list[dict[str, float]], tolerance: float) -> None:
    """A poisoned run finished with the recovered curve, finite parameters, and the poisoned samples named."""
    assert not sentence
    lines = records(phase)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line, expected in zip(lines, curve, strict=True):
        assert set(line["losses"]) == set(expected), line["step"]
        for name, value in expected.items():
            assert abs(line["losses"][name] - value) <= tolerance * value, (line["step"], name)
    assert lines[-1]["guards"] == {"skipped": len(SKIPPED), "spikes": 1, "rollbacks": 1}
    assert all_finite(phase)
    (back,) = events(phase, "rollback")
    assert (back["step"], back["bad"]) == (12, [10, 11, 12])
    # 256 tokens a step are 8 windows of 32; 128 tokens are 4.
    assert back["samples"] == {"mlm": [9 * 8, 12 * 8 - 1], "tlm": [9 * 4, 12 * 4 - 1]}
    skipped = {event["step"]: event["samples"]["mlm"] for event in events(phase, "skipped")}
    assert skipped == {step: [(step - 1) * 8, step * 8 - 1] for step in SKIPPED}
