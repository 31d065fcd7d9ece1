"""Layouts crossed with offload, precision, objectives, optimizer, family, and a stop in the middle, by pairwise coverage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layouts import FAMILIES, OPTIMIZERS, ORDERS, Case, Run, deviation, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

Row = dict[str, Any]
STEPS, SPLIT = 8, 3
"""Steps of a run, and those before the stop."""
BOUNDS = {"fp32": 1e-6, "bf16": 3e-3}
"""Of each step's loss against plain torch in fp32. In bf16 every weight is rounded to 8 bits: 3e-3 holds for any seed."""
NORM_BOUND = 1e-4
"""Of gradient norms in fp32; half precision has none, because the gradients themselves are rounded."""
OBJECTIVES = {"listed": [], **ORDERS}
CHAIN = [
    Layout(tensor=4, sequence=True),
    Layout(pipeline=4, zero_stage=0, micro_batch_tokens=64),
    Layout(zero_stage=3, micro_batch_tokens=32),
    Layout(tensor=2, zero_stage=2, sequence=True),
    Layout(tensor=2, pipeline=2),
]
"""Layouts of four ranks; each continues from the checkpoint of the one before."""
LINK_STEPS = 2
LAYOUTS = {
    2: {
        "TP2 sequence ZeRO-2": Layout(tensor=2, zero_stage=2, sequence=True),
        "TP2 ZeRO-3": Layout(tensor=2, zero_stage=3),
        "PP2 ZeRO-1": Layout(pipeline=2, micro_batch_tokens=64),
        "DP2 ZeRO-3": Layout(zero_stage=3, micro_batch_tokens=64),
    },
    4: {
        **{f"DP4 ZeRO-{stage}": Layout(zero_stage=stage, micro_batch_tokens=32) for stage in range(4)},
        "TP2 DP2 ZeRO-1": Layout(tensor=2),
        "TP2 DP2 sequence ZeRO-2": Layout(tensor=2, zero_stage=2, sequence=True),
        "TP2 DP2 ZeRO-3": Layout(tensor=2, zero_stage=3, micro_batch_tokens=64),
        "TP4 sequence ZeRO-1": Layout(tensor=4, sequence=True),
        "PP2 DP2 ZeRO-1": Layout(pipeline=2, micro_batch_tokens=64),
        "PP4 ZeRO-0": Layout(pipeline=4, zero_stage=0, micro_batch_tokens=64),
        "TP2 PP2 sequence ZeRO-1": Layout(tensor=2, pipeline=2, sequence=True),
    },
}


def pairs_of(row: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every two settings of a row with their values."""
    return set(itertools.combinations(row.items(), 2))


def pairwise(settings: Mapping[str, Sequence[Any]], legal: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Legal combinations that cover every pair of values that occurs in any of them; the same ones each time.

    Greedy: of all combinations the first one with the most pairs that are still missing, until none are. For settings of a
    few thousand combinations.
    """
    rows = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    pairs = [(row, pairs_of(row)) for row in rows if legal(row)]
    missing = set().union(*(of for _, of in pairs))
    chosen = []
    while missing:
        row, of = max(pairs, key=lambda pair: len(pair[1] & missing))
        chosen.append(row)
        missing -= of
    return chosen


def rows(ranks: int) -> list[Row]:
    """The combinations for so many ranks."""
    settings = {
        "layout": list(LAYOUTS[ranks]),
        "objectives": list(OBJECTIVES),
        "offload": [False, True],
        "precision": list(BOUNDS),
        "resumed": [False, True],
        "family": list(FAMILIES),
        "optimizer": list(OPTIMIZERS),
    }

    def legal(row: Row) -> bool:
        # Neither offload nor half precision without ZeRO, which has no masters there.
        return LAYOUTS[ranks][row["layout"]].zero_stage > 0 or (row["precision"] == "fp32" and not row["offload"])

    return pairwise(settings, legal)


def fields(row: Mapping[str, Any]) -> list[str]:
    """Overrides of a row that its reference has too."""
    return [*OBJECTIVES[row["objectives"]], *OPTIMIZERS[row["optimizer"]]]


def cases_of(row: Row, ranks: int, number: int) -> list[Case]:
    """The run of a row; if it is stopped and resumed, its two parts as well."""
    extra = [f"training.precision={row['precision']}", f"parallel.offload_optimizer={str(row['offload']).lower()}"]
    whole = Case(LAYOUTS[ranks][row["layout"]], family=row["family"], extra=[*fields(row), *extra])
    whole.folder = f"{number}-"
    if not row["resumed"]:
        return [whole]
    return [whole, replace(whole, save=True, steps=SPLIT), replace(whole, resume=True, steps=STEPS - SPLIT)]


def continues_bitwise(whole: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the parts, if any, have the losses, gradient norms and last weights of the run that was not stopped."""
    curves = all([value for part in parts for value in part[name]] == whole[name] for name in ("losses", "norms"))
    return not parts or (curves and parts[-1]["final"] == whole["final"])


def measure(run_ranks: Run, recipe: Path, folder: Path, ranks: int, chosen: Sequence[Row]) -> list[dict[str, Any]]:
    """Each row with the largest deviation of its losses and gradient norms from plain torch in one process in fp32."""
    cases = [cases_of(row, ranks, number) for number, row in enumerate(chosen)]
    results = iter(run_cases(run_ranks, recipe, folder / f"crossed-{ranks}.json", ranks, [*itertools.chain(*cases)], STEPS))
    singles: dict[tuple[str, ...], Mapping[str, Any]] = {}
    measured = []
    for row, parts in zip(chosen, cases, strict=True):
        key = (row["family"], *fields(row))
        if key not in singles:
            singles[key] = single_process(recipe, row["family"], STEPS, fields(row))
        single, (whole, *rest) = singles[key], [next(results) for _ in parts]
        measured.append(
            {
                "ranks": ranks,
                **row,
                "same_initial_weights": row["precision"] != "fp32" or whole["initial"] == single["initial"],
                "resumed_bitwise": continues_bitwise(whole, rest),
                "loss": deviation(whole["losses"], single["losses"]),
                "gradient_norm": deviation(whole["norms"], single["norms"]),
            }
        )
    return measured


def measure_chain(run_ranks: Run, recipe: Path, folder: Path, family: str, optimizer: str) -> list[dict[str, Any]]:
    """The links of CHAIN: whether each read its predecessor's checkpoint bit by bit, and its deviation from plain torch."""
    folder.mkdir()
    extra = OPTIMIZERS[optimizer]
    cases = [
        Case(layout, family=family, extra=extra, resume=number > 0, save=True, steps=LINK_STEPS)
        for number, layout in enumerate(CHAIN)
    ]
    single = single_process(recipe, family, LINK_STEPS * len(CHAIN), extra)
    links = run_cases(run_ranks, recipe, folder / "chain.json", 4, cases, LINK_STEPS)
    return [
        {
            "family": family,
            "optimizer": optimizer,
            "layout": link["name"],
            "first": link["first"],
            "copied": bool(link["copied"]) and link["first"] == number * LINK_STEPS,
            "loss": deviation(link["losses"], single["losses"][link["first"] :][:LINK_STEPS]),
        }
        for number, link in enumerate(links)
    ]


def keeps_chain(row: Mapping[str, Any]) -> bool:
    """Whether a link of a chain keeps to the bounds."""
    return bool(row["copied"] and row["loss"] < BOUNDS["fp32"])


def keeps(row: Mapping[str, Any]) -> bool:
    """Whether a measured row keeps to the bounds."""
    norm = row["precision"] != "fp32" or row["gradient_norm"] < NORM_BOUND
    return bool(row["same_initial_weights"] and row["resumed_bitwise"] and row["loss"] < BOUNDS[row["precision"]] and norm)


def lines(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as a section in Markdown."""
    return [
        "",
        "## Layouts crossed with offload, precision, objectives, optimizers and a stop",
        "",
        f"{STEPS} steps; every pair of values of two columns occurs in some row of its number of ranks. Reference: plain "
        f"torch in one process in fp32. Bounds of the loss: {BOUNDS['fp32']:.0e} in fp32, and in bf16 {BOUNDS['bf16']:.0e}, "
        f"its rounding; of the gradient norm {NORM_BOUND:.0e} in fp32. `resumed`: also stopped after {SPLIT} steps and "
        "resumed from the checkpoint by a new engine; `bitwise`: losses, gradient norms and last weights are those of the "
        "whole run.",
        "",
        "| family | layout | objectives | optimizer | precision | offload | resumed | loss | gradient norm |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['family']} | {r['layout']} | {r['objectives']} | {r['optimizer']} | {r['precision']} "
            f"| {'yes' if r['offload'] else 'no'} | {_resumed(r)} | {r['loss']:.1e} | {r['gradient_norm']:.1e} |"
            f"{'' if keeps(r) else ' BEYOND ITS BOUND'}"
            for r in measured
        ),
    ]


def _resumed(row: Mapping[str, Any]) -> str:
    if not row["resumed"]:
        return "no"
    return "bitwise" if row["resumed_bitwise"] else "DIFFERENT"


def chain_lines(links: Sequence[Mapping[str, Any]]) -> list[str]:
    """The links of the chains as a section in Markdown."""
    return [
        "",
        "## Checkpoints from layout to layout",
        "",
        f"Each row of a family and optimizer continues for {LINK_STEPS} steps from the checkpoint of the row above, in "
        "fp32. `checkpoint`: a copy saved right after loading has the same weights and moments bit for bit. Bound of the "
        f"loss against plain torch in one process: {BOUNDS['fp32']:.0e}.",
        "",
        "| family | optimizer | layout | first step | checkpoint | loss |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['family']} | {r['optimizer']} | {r['layout']} | {r['first']} | {'equal' if r['copied'] else 'DIFFERENT'} "
            f"| {r['loss']:.1e} |{'' if keeps_chain(r) else ' BEYOND ITS BOUND'}"
            for r in links
        ),
    ]
