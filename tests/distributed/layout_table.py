"""Train under every layout and write how far each is from one process: `make layouts`.

usage: layout_table.py OUTPUT.md [crossed] (beside it the figures as OUTPUT.json; `crossed`: without the first table)
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from dist_metaxlm.training.run.environment import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
import crossed
from conftest import prepare_tiny_recipe, run
from layouts import FAMILIES, OPTIMIZERS, Case, deviation, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

STEPS = 20
LAYOUTS = {
    2: [
        Layout(),
        *(Layout(tensor=2, zero_stage=stage) for stage in range(4)),
        Layout(tensor=2, sequence=True),
        *(Layout(pipeline=2, zero_stage=stage) for stage in (0, 1)),
    ],
    4: [
        Layout(zero_stage=3),
        *(Layout(tensor=2, zero_stage=stage) for stage in range(4)),
        *(Layout(tensor=2, zero_stage=stage, sequence=True) for stage in range(4)),
        Layout(tensor=4, zero_stage=0),
        Layout(tensor=4, sequence=True),
        Layout(tensor=4, zero_stage=3),
        Layout(tensor=2, micro_batch_tokens=32),
        *(Layout(pipeline=stages, zero_stage=stage) for stages in (2, 4) for stage in (0, 1)),
        Layout(tensor=2, pipeline=2, zero_stage=0),
        Layout(tensor=2, pipeline=2, sequence=True),
        Layout(pipeline=2, micro_batch_tokens=32),
    ],
    8: [
        Layout(tensor=4),
        Layout(tensor=4, zero_stage=2, sequence=True),
        Layout(tensor=4, zero_stage=3, sequence=True),
        Layout(tensor=2, zero_stage=2, sequence=True),
        Layout(tensor=2, pipeline=2, sequence=True),
        Layout(tensor=2, pipeline=4, zero_stage=0, micro_batch_tokens=64),
    ],
}


def measure(folder: Path) -> list[dict[str, Any]]:
    """One row per family and layout: deviations over all steps from the single process, in torch alone."""
    recipe, rows = prepare_tiny_recipe(folder), []
    for family, optimizer in product(FAMILIES, ("adamw", "muon")):
        extra = OPTIMIZERS[optimizer]
        single = single_process(recipe, family, STEPS, extra)
        for ranks, layouts in LAYOUTS.items():
            cases = [Case(layout, family=family, extra=extra) for layout in layouts]
            patient = partial(run, timeout=1800)
            for found in run_cases(patient, recipe, folder / f"{family}-{optimizer}-{ranks}.json", ranks, cases, STEPS):
                rows.append(
                    {
                        "family": family,
                        "optimizer": optimizer,
                        "ranks": ranks,
                        "layout": found["name"],
                        "same_initial_weights": found["initial"] == single["initial"],
                        "loss": deviation(found["losses"], single["losses"]),
                        "gradient_norm": deviation(found["norms"], single["norms"]),
                    }
                )
    return rows


def measure_crossed(folder: Path) -> list[dict[str, Any]]:
    """The rows of crossed.py on all its numbers of ranks."""
    folder.mkdir()
    recipe, patient = prepare_tiny_recipe(folder), partial(run, timeout=3600)
    return [row for ranks in crossed.LAYOUTS for row in crossed.measure(patient, recipe, folder, ranks, crossed.rows(ranks))]


def measure_chains(folder: Path) -> list[dict[str, Any]]:
    """The chains of crossed.py for every family and optimizer."""
    folder.mkdir()
    recipe, patient = prepare_tiny_recipe(folder), partial(run, timeout=1800)
    return [
        link
        for family, optimizer in product(FAMILIES, OPTIMIZERS)
        for link in crossed.measure_chain(patient, recipe, folder / f"{family}-{optimizer}", family, optimizer)
    ]


Rows = list[dict[str, Any]]


def write(rows: Rows, crossing: Rows, chains: Rows, path: Path) -> bool:
    """The tables as Markdown and JSON; whether all rows keep to the bounds."""
    facts = environment()
    kept = all(r["same_initial_weights"] and r["loss"] < 1e-5 and r["gradient_norm"] < 1e-4 for r in rows)
    kept &= all(map(crossed.keeps, crossing)) and all(map(crossed.keeps_chain, chains))
    head = [
        "# Layouts against one process",
        "",
        f"`make layouts` on {facts['date']}, commit {facts['commit']}, {facts['device']} ({facts['cpu_cores']} cores), "
        + ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "deepspeed", "megatron-core"))
        + ", gloo, fp32.",
        "",
        "Two blocks (four with muon, which needs one on each pipeline stage) of width 32 with four heads, 383 ids "
        f"(neither 2 nor 4 divide them), {STEPS} steps of the joint phase (mlm, tlm, contrast). "
        "Reference: one process with plain torch, without DeepSpeed and megatron-core. "
        "Columns: initial weights equal bit for bit; largest relative deviation of any step's loss (bound 1e-5) and "
        "gradient norm (bound 1e-4). In every row what several ranks hold is bit-equal at the end (a pipeline's "
        "embedding and head included), and the vocabulary's padding still zero.",
        "",
        "| family | optimizer | layout | initial weights | loss | gradient norm |",
        "|---|---|---|---|---|---|",
    ]
    lines = [
        f"| {r['family']} | {r['optimizer']} | {r['layout']} "
        f"| {'equal' if r['same_initial_weights'] else 'DIFFERENT'} | {r['loss']:.1e} | {r['gradient_norm']:.1e} |"
        for r in rows
    ]
    path.write_text("\n".join([*head, *lines, *crossed.lines(crossing), *crossed.chain_lines(chains), ""]), encoding="utf-8")
    tables = {
        "environment": facts,
        "steps": STEPS,
        "rows": rows,
        "crossed_steps": crossed.STEPS,
        "crossed": crossing,
        "chains": chains,
    }
    path.with_suffix(".json").write_text(json.dumps(tables, indent=1))
    return kept


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows = [] if sys.argv[2:] == ["crossed"] else measure(Path(folder))
        crossing, chains = measure_crossed(Path(folder) / "crossed"), measure_chains(Path(folder) / "chains")
        return 0 if write(rows, crossing, chains, Path(sys.argv[1])) else 1


if __name__ == "__main__":
    raise SystemExit(main())
