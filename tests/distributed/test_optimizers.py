"""Muon and StableAdamW make the same update in every layout as whole tensors in one process with plain torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, deviation, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

STEPS = 4
MUON = ["optimizer.name=muon", "optimizer.matrix_rate=2.0"]
EACH_HEAD = [*MUON, "optimizer.heads=each", "optimizer.nesterov=false"]
OPTIMIZERS = {"xlmr": MUON, "modern": EACH_HEAD}
OFFLOAD = ["parallel.offload_optimizer=true"]
CASES = {
    2: [
        Case(Layout(zero_stage=0), extra=MUON),
        Case(Layout(zero_stage=2), extra=[*MUON, *OFFLOAD]),
        Case(Layout(tensor=2, zero_stage=2, sequence=True), extra=MUON),
        Case(Layout(pipeline=2), extra=MUON),
    ],
    4: [
        Case(Layout(zero_stage=3), extra=MUON),
        Case(Layout(tensor=2, pipeline=2), extra=MUON),
        Case(Layout(tensor=2, zero_stage=1, sequence=True), family="modern", extra=EACH_HEAD),
        Case(Layout(tensor=4, zero_stage=0), family="modern", extra=EACH_HEAD),
    ],
}
"""By ranks: all cases of one start."""


@pytest.fixture(scope="module")
def references(tiny_recipe: Path) -> dict[str, dict[str, Any]]:
    return {family: single_process(tiny_recipe, family, STEPS, fields) for family, fields in OPTIMIZERS.items()}


@pytest.mark.parametrize("ranks", CASES)
def test_every_layout_makes_the_same_update(
    ranks: int, references: dict[str, dict[str, Any]], tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    cases = CASES[ranks]
    rows = run_cases(run_ranks, tiny_recipe, tmp_path / "muon.json", ranks, cases, STEPS)
    for case, row in zip(cases, rows, strict=True):
        single, where = references[case.family], (case.family, row["name"])
        assert single["losses"][-1] < single["losses"][0]
        assert row["initial"] == single["initial"], where
        assert deviation(row["losses"], single["losses"]) < 1e-5, where
        assert deviation(row["norms"], single["norms"]) < 1e-4, where
        weights = row["weights"]
        assert deviation(list(weights.values()), [single["weights"][name] for name in weights]) < 1e-5, where


def test_momentum_goes_bit_by_bit_from_layout_to_layout(
    tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "chain.json"
    for layout in (Layout(tensor=2, zero_stage=2), Layout(zero_stage=3)):
        case = Case(layout, resume=output.exists(), save=True, extra=MUON)
        (row,) = run_cases(run_ranks, tiny_recipe, output, 2, [case], 2)
        assert row["copied"], layout
    assert row["first"] == 2


# below 1, so that every tensor's rate is divided from the first step on
STABLE = ["optimizer.name=stable_adamw", "optimizer.update_clip=0.5"]
STABLE_LAYOUTS = [
    Layout(zero_stage=3),
    Layout(tensor=2, zero_stage=2, sequence=True),
    Layout(tensor=2, pipeline=2),
    Layout(tensor=4, zero_stage=0),
]


def test_stable_adamws_mean_is_over_whole_tensors(tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    single = single_process(tiny_recipe, "xlmr", STEPS, STABLE)
    cases = [Case(layout, extra=STABLE) for layout in STABLE_LAYOUTS]
    cases[0].extra = [*STABLE, "parallel.offload_optimizer=true"]
    rows = run_cases(run_ranks, tiny_recipe, tmp_path / "stable.json", 4, cases, STEPS)
    assert single["losses"] != single_process(tiny_recipe, "xlmr", STEPS, [])["losses"]
    for row in rows:
        assert deviation(row["losses"], single["losses"]) < 1e-5, row["name"]
        assert deviation(row["norms"], single["norms"]) < 1e-4, row["name"]
        weights = row["weights"]
        assert deviation(list(weights.values()), [single["weights"][name] for name in weights]) < 1e-5, row["name"]
