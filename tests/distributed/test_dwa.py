"""Denoising word alignment under data parallelism and ZeRO gives what one process gives."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, Layout, run_cases, single_process

STEPS = 4
OBJECTIVES = ["phases.joint.objectives=[{name: mlm, batch_tokens: 128}, {name: dwa, batch_tokens: 256, layer: 1, weight: 3.0}]"]
LAYOUTS = [Layout(), Layout(zero_stage=1, micro_batch_tokens=64)]


def test_data_parallel_ranks_and_zero_give_what_one_process_gives(tiny_recipe: Path, tmp_path: Path,
                                                                  run_ranks: Callable[..., str]) -> None:
    single = single_process(tiny_recipe, "xlmr", STEPS, OBJECTIVES)
    assert {"objectives.dwa.query.weight", "objectives.dwa.key.weight"} <= set(single["weights"])
    cases = [Case(layout, extra=OBJECTIVES) for layout in LAYOUTS]
    for found in run_cases(run_ranks, tiny_recipe, tmp_path / "results.json", 2, cases, STEPS):
        assert found["initial"] == single["initial"], found["name"]
        assert found["losses"] == pytest.approx(single["losses"], rel=1e-5), found["name"]
        assert found["norms"] == pytest.approx(single["norms"], rel=1e-4), found["name"]
        assert found["weights"] == pytest.approx(single["weights"], rel=1e-3), found["name"]
