"""Schedules of masks, lengths and batches change nothing about layouts: the same losses as one process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, deviation, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

SCHEDULES = [
    "phases.joint.mask_rate=[{tokens: 0, mask_rate: 0.3}, {tokens: 400, mask_rate: 0.15}]",
    "phases.joint.sequence_length=[{tokens: 0, sequence_length: 32}, {tokens: 400, sequence_length: 64}]",
    "phases.joint.objectives=[{name: mlm, batch_tokens: [{tokens: 0, batch_tokens: 256}, "
    "{tokens: 800, batch_tokens: 512}]}, {name: tlm, batch_tokens: 128, weight: 0.5, span_p: 0.2}]",
]
STEPS = 5


def test_layouts_follow_the_schedules(tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    single = single_process(tiny_recipe, "xlmr", STEPS, SCHEDULES)
    layouts = [Layout(zero_stage=2, micro_batch_tokens=64), Layout(tensor=2, sequence=True), Layout(pipeline=2)]
    cases = [Case(layout, extra=SCHEDULES) for layout in layouts]
    for row in run_cases(run_ranks, tiny_recipe, tmp_path / "schedules.json", 2, cases, STEPS):
        assert deviation(row["losses"], single["losses"]) < 1e-5, row["name"]
        assert deviation(row["norms"], single["norms"]) < 1e-4, row["name"]
