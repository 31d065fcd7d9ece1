"""Muon makes the same update in every layout as whole matrices in one process with plain torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, deviation, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

STEPS = 4
MUON = ["optimizer.name=muon", "optimizer.matrix_rate=2.0"]
EACH_HEAD = [*MUON, "optimizer.heads=each", "optimizer.nesterov=false"]
OFFLOAD = ["parallel.offload_optimizer=true"]
CASES = {
    ("xlmr", 2): [
        Case(Layout(zero_stage=0), extra=MUON),
        Case(Layout(zero_stage=2), extra=[*MUON, *OFFLOAD]),
        Case(Layout(tensor=2, zero_stage=2, sequence=True), extra=MUON),
        Case(Layout(pipeline=2), extra=MUON),
    ],
    ("xlmr", 4): [Case(Layout(zero_stage=3), extra=MUON), Case(Layout(tensor=2, pipeline=2), extra=MUON)],
    ("modern", 4): [
        Case(Layout(tensor=2, zero_stage=1, sequence=True), family="modern", extra=EACH_HEAD),
        Case(Layout(tensor=4, zero_stage=0), family="modern", extra=EACH_HEAD),
    ],
}


@pytest.mark.parametrize(("family", "ranks"), CASES)
def test_every_layout_makes_the_same_update(
    family: str, ranks: int, tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    cases = CASES[family, ranks]
    optimizer = EACH_HEAD if family == "modern" else MUON
    single = single_process(tiny_recipe, family, STEPS, optimizer)
    assert single["losses"][-1] < single["losses"][0]
    for row in run_cases(run_ranks, tiny_recipe, tmp_path / "muon.json", ranks, cases, STEPS):
        assert row["initial"] == single["initial"], row["name"]
        assert deviation(row["losses"], single["losses"]) < 1e-5, row["name"]
        assert deviation(row["norms"], single["norms"]) < 1e-4, row["name"]
        weights = row["weights"]
        assert deviation(list(weights.values()), [single["weights"][name] for name in weights]) < 1e-5, row["name"]


def test_a_run_moves_over_layouts_and_optimisers(tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    """Momentum goes bit by bit from layout to layout; the step numbers go on."""
    output = tmp_path / "chain.json"
    for ranks, layout in ((2, Layout(tensor=2, zero_stage=2)), (2, Layout(zero_stage=3)), (2, Layout(pipeline=2))):
        case = Case(layout, resume=output.exists(), save=True, extra=MUON)
        (row,) = run_cases(run_ranks, tiny_recipe, output, ranks, [case], 2)
        assert row["copied"], layout
    assert row["first"] == 4
