"""Tensor and sequence parallelism with every ZeRO stage give what one process gives (docs/parallelism.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, Layout, run_cases, single_process

STEPS = 3
# Every stage, both sizes, with and without sequence parallelism; docs/results has the whole table (make layouts).
SPREAD = {"xlmr": [Layout(2, 0), Layout(2, 2, sequence=True), Layout(4, 1)],
          "modern": [Layout(2, 1, sequence=True, micro_batch_tokens=64), Layout(2, 3, sequence=True), Layout(4, 2)]}
CHAIN = [Layout(2, 1), Layout(1, 3), Layout(4, 0), Layout(2, 3, sequence=True), Layout(1, 1)]


@pytest.fixture(scope="module")
def trained(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory,
            run_ranks: Callable[..., str]) -> list[dict[str, Any]]:
    """Results of all layouts, then of the chain: one start of four ranks for all, because starting is what takes long."""
    cases = [Case(layout, family=family) for family, layouts in SPREAD.items() for layout in layouts]
    cases += [Case(layout, resume=index > 0, save=True) for index, layout in enumerate(CHAIN)]
    return run_cases(run_ranks, tiny_recipe, tmp_path_factory.mktemp("layouts") / "results.json", 4, cases, STEPS)


@pytest.mark.parametrize("family", SPREAD)
def test_the_layout_changes_nothing(family: str, tiny_recipe: Path, trained: list[dict[str, Any]]) -> None:
    first = sum(len(SPREAD[other]) for other in list(SPREAD)[:list(SPREAD).index(family)])
    single = single_process(tiny_recipe, family, STEPS)
    for result in trained[first:first + len(SPREAD[family])]:
        assert result["initial"] == single["initial"], f"{result['name']}: other initial weights"
        assert result["losses"] == pytest.approx(single["losses"], rel=1e-5), result["name"]
        assert result["norms"] == pytest.approx(single["norms"], rel=1e-4), result["name"]
        assert result["weights"] == pytest.approx(single["weights"], rel=1e-3), result["name"]


def test_checkpoints_go_through_a_chain_of_layouts_bit_by_bit(tiny_recipe: Path, trained: list[dict[str, Any]]) -> None:
    results = trained[-len(CHAIN):]
    assert [result["first"] for result in results] == [STEPS * index for index in range(len(CHAIN))]
    assert all(result["copied"] for result in results), [r["name"] for r in results if not r["copied"]]
    whole = single_process(tiny_recipe, "xlmr", STEPS * len(CHAIN))
    assert [loss for result in results for loss in result["losses"]] == pytest.approx(whole["losses"], rel=1e-5)
