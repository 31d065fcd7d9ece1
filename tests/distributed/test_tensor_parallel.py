"""Tensor and sequence parallelism with every ZeRO stage give what one process gives (docs/parallelism.md)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("layouts", Path(__file__).with_name("layouts.py"))
assert _spec is not None
assert _spec.loader is not None
layouts = sys.modules["layouts"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layouts)
Case, Layout = layouts.Case, layouts.Layout
STEPS = 6

# Every stage, both sizes, with and without sequence parallelism; docs/results has the whole table (make layouts).
SPREAD = {"xlmr": [Layout(2, 0), Layout(2, 2, sequence=True), Layout(4, 1)],
          "modern": [Layout(2, 1, sequence=True, micro_batch_tokens=64), Layout(2, 3, sequence=True), Layout(4, 2)]}


@pytest.mark.parametrize("family", SPREAD)
def test_the_layout_changes_nothing(family: str, tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]) -> None:
    single, = layouts.run_cases(run_ranks, tiny_recipe, tmp_path / "single.json", 1, family, [Case(Layout())], STEPS)
    cases = [Case(layout) for layout in SPREAD[family]]
    spread = layouts.run_cases(run_ranks, tiny_recipe, tmp_path / "spread.json", 4, family, cases, STEPS)
    for result in spread:
        assert result["initial"] == single["initial"], f"{result['name']}: other initial weights"
        assert result["losses"] == pytest.approx(single["losses"], rel=1e-5), result["name"]
        assert result["norms"] == pytest.approx(single["norms"], rel=1e-4), result["name"]
        assert result["weights"] == pytest.approx(single["weights"], rel=1e-3), result["name"]


def test_checkpoints_go_through_a_chain_of_layouts_bit_by_bit(tiny_recipe: Path, tmp_path: Path,
                                                              run_ranks: Callable[..., str]) -> None:
    chain = [Layout(2, 1), Layout(1, 3), Layout(4, 0), Layout(2, 3, sequence=True), Layout(1, 1)]
    cases = [Case(layout, resume=index > 0, save=True) for index, layout in enumerate(chain)]
    results = layouts.run_cases(run_ranks, tiny_recipe, tmp_path / "chain.json", 4, "xlmr", cases, 2)
    assert [result["first"] for result in results] == [0, 2, 4, 6, 8]
    assert all(result["copied"] for result in results), [r["name"] for r in results if not r["copied"]]
    whole, = layouts.run_cases(run_ranks, tiny_recipe, tmp_path / "whole.json", 1, "xlmr", [Case(Layout())], 10)
    assert [loss for result in results for loss in result["losses"]] == pytest.approx(whole["losses"], rel=1e-5)
