"""Half precision, recomputation and offload change the numbers by their rounding at most, in every kind of layout.

`make precision` takes many more layouts (precision_table.py).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

STEPS = 2
FP16_HERE = torch.ops.mkldnn._is_mkldnn_fp16_supported()
fp16_here = pytest.mark.skipif(not FP16_HERE, reason="this CPU has no fp16 instructions; DeepSpeed refuses fp16 on it")
BF16, FP16 = ["training.precision=bf16"], ["training.precision=fp16", "training.fp16_scale_power=8"]
OFFLOAD = ["parallel.offload_optimizer=true"]
CASES = {
    "bf16 blocks": Case(Layout(tensor=2, sequence=True, micro_batch_tokens=64), extra=[*BF16, "parallel.recompute=blocks"]),
    "bf16 selective": Case(Layout(tensor=2, zero_stage=3, sequence=True), extra=[*BF16, "parallel.recompute=selective"]),
    "plain": Case(Layout(zero_stage=2, micro_batch_tokens=64), extra=BF16),
    "offload": Case(Layout(zero_stage=2, micro_batch_tokens=64), extra=[*BF16, *OFFLOAD], save=True),
    "from offload": Case(Layout(zero_stage=3), extra=BF16, resume=True, save=True),
    "to offload": Case(Layout(tensor=2), extra=OFFLOAD, resume=True, save=True),
    "bf16 pipeline": Case(Layout(pipeline=2, micro_batch_tokens=64), extra=[*BF16, "parallel.recompute=blocks"]),
    "fp16": Case(Layout(tensor=2, zero_stage=2), extra=FP16),
    "fp16 pipeline": Case(Layout(pipeline=2, micro_batch_tokens=64), extra=FP16),
}
# 2^16 is at the edge for this model: steps overflow, and every good step after another one doubles the scale again.
RUN = [
    "training.precision=fp16",
    "training.fp16_scale_power=16",
    "training.fp16_scale_window=1",
    "training.log_interval=1",
    "training.checkpoint_interval=3",
    "phases.joint.steps=6",
    "parallel.zero_stage=3",
]
MASTERS = [
    ("meta", []),
    ("meta", ["parallel.zero_stage=3", "carry_over.unseen_embeddings=reinitialise"]),
    ("imported", ["parallel.pipeline=2"]),
    ("imported", ["parallel.zero_stage=2", *OFFLOAD]),
]


@pytest.fixture(scope="module")
def trained(
    tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., str]
) -> tuple[dict[str, dict[str, Any]], Path]:
    """Results of CASES by name, and the folder with the fp16 runs `whole` and `resumed`; one start of two ranks."""
    folder = tmp_path_factory.mktemp("precision")
    cases = {name: case for name, case in CASES.items() if FP16_HERE or "fp16" not in name}
    results = run_cases(
        run_ranks,
        tiny_recipe,
        folder / "results.json",
        2,
        list(cases.values()),
        STEPS,
        worker="worker_precision.py",
        fp16=RUN if FP16_HERE else [],
        resume=3,
        masters=MASTERS,
    )
    return dict(zip(cases, results, strict=True)), folder


def close(result: dict[str, Any], single: dict[str, Any], first: int = 0) -> None:
    steps = slice(first, first + STEPS)
    # A pipeline that lost the head's gradient of the tied embedding would be 3.5e-3 away in the second step.
    assert result["losses"] == pytest.approx(single["losses"][steps], rel=1e-3), result["name"]
    assert result["norms"] == pytest.approx(single["norms"][steps], rel=2e-2), result["name"]


@pytest.fixture(scope="module")
def single(tiny_recipe: Path) -> dict[str, Any]:
    """One process in fp32, long enough for the chain of checkpoints."""
    return single_process(tiny_recipe, "xlmr", 3 * STEPS)


@pytest.mark.parametrize("name", ["bf16 blocks", "bf16 selective", "plain", "offload", "bf16 pipeline"])
def test_bf16_is_near_one_process_in_fp32(name: str, trained: Any, single: dict[str, Any]) -> None:
    assert trained[0][name]["initial"] == trained[0]["plain"]["initial"]
    close(trained[0][name], single)


@fp16_here
@pytest.mark.parametrize("name", ["fp16", "fp16 pipeline"])
def test_fp16_is_near_one_process_in_fp32(name: str, trained: Any, single: dict[str, Any]) -> None:
    close(trained[0][name], single)


def test_offload_changes_nothing(trained: Any) -> None:
    plain, offload = trained[0]["plain"], trained[0]["offload"]
    for name in ("losses", "norms", "final"):
        assert offload[name] == plain[name], name


def test_checkpoints_go_from_offload_and_to_it_bit_by_bit(trained: Any, single: dict[str, Any]) -> None:
    for number, name in enumerate(["from offload", "to offload"], start=1):
        result = trained[0][name]
        assert result["first"] == number * STEPS
        assert result["copied"], name
        close(result, single, number * STEPS)


def test_masters_begin_with_what_was_carried_over_or_imported_bit_by_bit(trained: Any) -> None:
    wrong = json.loads((trained[1] / "masters.json").read_text())
    assert wrong == [[[]] * len(MASTERS)] * 2, "by rank and case"


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "joint" / "metrics.jsonl").read_text().splitlines()]


def manifest(run: Path, step: int) -> dict[str, Any]:
    return json.loads((run / "joint" / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())


@fp16_here
def test_overflowing_steps_are_skipped_and_the_run_goes_on(trained: Any) -> None:
    whole = trained[1] / "whole"
    lines = records(whole)
    skipped = [line["skipped_steps"] for line in lines]
    overflowed = [now > before for before, now in zip([0, *skipped], skipped, strict=False)]
    assert {True, False} == set(overflowed)
    assert [line["grad_norm"] is None for line in lines] == overflowed
    scales = [line["loss_scale"] for line in lines]
    assert min(scales) < 2.0**16
    assert all(now in (before / 2, before, 2 * before) for before, now in zip(scales, scales[1:], strict=False))
    assert len({line["learning_rate"] for line in lines}) == 6, "the schedule goes on"
    assert all(math.isfinite(line["loss"]) for line in lines)
    saved = manifest(whole, 6)
    assert saved["adam_step"] == 6 - skipped[-1], "Adam made no update in a skipped step"
    assert saved["loss_scaling"]["skipped_steps"] == skipped[-1]


@fp16_here
def test_a_resumed_fp16_run_is_bitwise_the_uninterrupted_one(trained: Any) -> None:
    whole, resumed = (trained[1] / name for name in ("whole", "resumed"))
    for name in ("step", "losses", "grad_norm", "loss_scale", "skipped_steps", "learning_rate"):
        assert [line[name] for line in records(resumed)] == [line[name] for line in records(whole)]
    assert manifest(resumed, 6)["loss_scaling"] == manifest(whole, 6)["loss_scaling"]
