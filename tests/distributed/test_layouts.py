"""Tensor, sequence and pipeline parallelism with every ZeRO stage give what one process gives (docs/parallelism.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, deviation, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

STEPS = 3
# Every stage and size, with and without sequence parallelism; docs/results has the whole table (make layouts).
SPREAD = {
    "xlmr": [
        Layout(tensor=2, zero_stage=0),
        Layout(tensor=2, zero_stage=2, sequence=True),
        Layout(tensor=4),
        Layout(pipeline=2),
        Layout(tensor=2, pipeline=2, zero_stage=0, sequence=True),
        Layout(pipeline=4, micro_batch_tokens=32),
    ],
    "modern": [
        Layout(tensor=2, sequence=True, micro_batch_tokens=64),
        Layout(tensor=2, zero_stage=3, sequence=True),
        Layout(tensor=4, zero_stage=2),
        Layout(tensor=2, pipeline=2, sequence=True, micro_batch_tokens=64),
    ],
}
THREE_LAYERS = ["model.layers=3"]
RMS = ["model.norm_type=rms"]
DROPOUT = ["model.dropout=0.2", "model.attention_dropout=0.2"]
DWA = [
    "phases.joint.objectives=[{name: mlm, batch_tokens: 128}, {name: dwa, batch_tokens: 256, layer: 1, weight: 3.0}]",
    *DROPOUT,
]
# Causal attention beside bidirectional, with local layers.
CLM = [
    "phases.joint.objectives=[{name: mlm, batch_tokens: 128}, {name: clm, batch_tokens: 256, target_share: 0.4}]",
    "model.local_window=12",
    *DROPOUT,
]
# Among SPREAD and DROPOUT: a layout, its family and fields, with a probe after every step.
PROBED = [
    Case(Layout(tensor=2, zero_stage=2, sequence=True), probe=True),
    Case(Layout(pipeline=2), probe=True),
    Case(Layout(zero_stage=3), extra=DROPOUT, probe=True),
]
# ranks, layout: the same run goes through all of them.
CHAIN = [
    (4, Layout(tensor=2, pipeline=2)),
    (4, Layout(pipeline=4, zero_stage=0)),
    (4, Layout(zero_stage=3)),
    (1, Layout()),
    (4, Layout(tensor=4)),
    (4, Layout(tensor=2, zero_stage=3, sequence=True)),
    (4, Layout()),
]
DRAWN = ["phases.joint.mixing=draw"]


@pytest.fixture(scope="module")
def trained(
    tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., str]
) -> dict[str, list[dict[str, Any]]]:
    """Results of all layouts by what they show: one start of four ranks for all, because starting is what takes long."""
    cases = {family: [Case(layout, family=family) for layout in layouts] for family, layouts in SPREAD.items()}
    cases["dropout"] = [
        Case(layout, extra=DROPOUT)
        for layout in (Layout(tensor=2, zero_stage=2, sequence=True), Layout(pipeline=2, zero_stage=0), Layout(zero_stage=3))
    ]
    cases["three layers"] = [Case(Layout(pipeline=4, zero_stage=0), extra=THREE_LAYERS)]
    cases["rms"] = [Case(Layout(tensor=2, pipeline=2, sequence=True), family="modern", extra=RMS)]
    cases["dwa"] = [Case(layout, extra=DWA) for layout in (Layout(zero_stage=0), Layout(micro_batch_tokens=32))]
    cases["clm"] = [
        Case(layout, family="modern", extra=CLM)
        for layout in (Layout(tensor=2, zero_stage=2, sequence=True), Layout(pipeline=2), Layout(zero_stage=3))
    ]
    cases["probed"] = PROBED
    results = iter(
        run_cases(
            run_ranks,
            tiny_recipe,
            tmp_path_factory.mktemp("layouts") / "results.json",
            4,
            [case for group in cases.values() for case in group],
            STEPS,
        )
    )
    return {name: [next(results) for _ in group] for name, group in cases.items()}


def check(found: dict[str, Any], single: dict[str, Any]) -> None:
    assert found["initial"] == single["initial"], f"{found['name']}: other initial weights"
    assert found["losses"] == pytest.approx(single["losses"], rel=1e-5), found["name"]
    assert found["norms"] == pytest.approx(single["norms"], rel=1e-4), found["name"]
    assert found["weights"] == pytest.approx(single["weights"], rel=1e-3), found["name"]


@pytest.mark.parametrize(
    ("what", "family", "extra"),
    [
        ("xlmr", "xlmr", []),
        ("modern", "modern", []),
        ("dropout", "xlmr", DROPOUT),
        ("three layers", "xlmr", THREE_LAYERS),
        ("rms", "modern", RMS),
        ("dwa", "xlmr", DWA),
        ("clm", "modern", CLM),
    ],
)
def test_the_layout_changes_nothing(
    what: str, family: str, extra: list[str], tiny_recipe: Path, trained: dict[str, list[dict[str, Any]]]
) -> None:
    single = single_process(tiny_recipe, family, STEPS, extra)
    assert ({"objectives.dwa.query.bias", "objectives.dwa.key.weight"} <= set(single["weights"])) == (what == "dwa")
    for found in trained[what]:
        check(found, single)


def test_a_probe_after_every_step_changes_no_bit_and_finds_the_same_in_every_layout(
    trained: dict[str, list[dict[str, Any]]],
) -> None:
    for found, case in zip(trained["probed"], PROBED, strict=True):
        others = trained["dropout" if case.extra == DROPOUT else "xlmr"]
        [same] = [other for other in others if other["name"] == found["name"]]
        assert (found["losses"], found["norms"], found["weights"]) == (same["losses"], same["norms"], same["weights"])
        assert len(found["retrieval"]) == STEPS
        assert found["random_state_kept"]
        assert set(found["heldout"]) == {"en", "de", "el"}
        assert found["heldout"] == pytest.approx(found["heldout_alone"], rel=1e-5)
    # 20 strings, 2 languages, both ways: one sentence more or less that has two neighbours equally near is 1/80
    assert trained["probed"][0]["retrieval"] == pytest.approx(trained["probed"][1]["retrieval"], abs=0.03)


def test_seven_layers_on_three_stages(tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]) -> None:
    extra = ["model.layers=7"]
    [found] = run_cases(
        run_ranks, tiny_recipe, tmp_path / "results.json", 3, [Case(Layout(pipeline=3, zero_stage=0), extra=extra)], STEPS
    )
    check(found, single_process(tiny_recipe, "xlmr", STEPS, extra))


def test_checkpoints_go_through_a_chain_of_layouts_bit_by_bit(
    tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]
) -> None:
    results: list[dict[str, Any]] = []
    while len(results) < len(CHAIN):
        ranks = CHAIN[len(results)][0]
        links = [layout for other, layout in CHAIN[len(results) :]]
        same = next((i for i, (other, _) in enumerate(CHAIN[len(results) :]) if other != ranks), len(links))
        cases = [Case(layout, resume=bool(results) or i > 0, save=True) for i, layout in enumerate(links[:same])]
        results += run_cases(run_ranks, tiny_recipe, tmp_path / "results.json", ranks, cases, STEPS)
    assert [found["first"] for found in results] == [STEPS * index for index in range(len(CHAIN))]
    assert all(found["copied"] for found in results), [found["name"] for found in results if not found["copied"]]
    whole = single_process(tiny_recipe, "xlmr", STEPS * len(CHAIN))
    assert [loss for found in results for loss in found["losses"]] == pytest.approx(whole["losses"], rel=1e-5)


def test_objectives_drawn_at_random_do_not_deadlock_and_no_gradient_is_used_twice(
    tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]
) -> None:
    cases = [Case(Layout(zero_stage=3), extra=DRAWN), Case(Layout(pipeline=2, zero_stage=0), extra=DRAWN)]
    single = single_process(tiny_recipe, "xlmr", 40, DRAWN)
    for found in run_cases(run_ranks, tiny_recipe, tmp_path / "results.json", 2, cases, 200):
        assert len(found["losses"]) == 200
        assert found["losses"][:40] == pytest.approx(single["losses"], rel=1e-5), found["name"]


SCHEDULES = [
    "phases.joint.mask_rate=[{tokens: 0, mask_rate: 0.3}, {tokens: 400, mask_rate: 0.15}]",
    "phases.joint.sequence_length=[{tokens: 0, sequence_length: 32}, {tokens: 400, sequence_length: 64}]",
    "phases.joint.objectives=[{name: mlm, batch_tokens: [{tokens: 0, batch_tokens: 256}, "
    "{tokens: 800, batch_tokens: 512}]}, {name: tlm, batch_tokens: 128, weight: 0.5, span_p: 0.2}]",
]
SCHEDULED_STEPS = 5


def test_layouts_follow_the_schedules(tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    single = single_process(tiny_recipe, "xlmr", SCHEDULED_STEPS, SCHEDULES)
    layouts = [Layout(zero_stage=2, micro_batch_tokens=64), Layout(tensor=2, sequence=True), Layout(pipeline=2)]
    cases = [Case(layout, extra=SCHEDULES) for layout in layouts]
    for row in run_cases(run_ranks, tiny_recipe, tmp_path / "schedules.json", 2, cases, SCHEDULED_STEPS):
        assert deviation(row["losses"], single["losses"]) < 1e-5, row["name"]
        assert deviation(row["norms"], single["norms"]) < 1e-4, row["name"]
