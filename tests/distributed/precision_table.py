"""Train in half precision, with recomputation and offload, under many layouts: `make precision`.

usage: precision_table.py OUTPUT.md [xlmr] [modern] [orders] (beside it the figures as OUTPUT.json)
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.training.run.environment import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import prepare_tiny_recipe, run
from layouts import ORDERS, SHARDED, Case, deviation, order_case, order_fields, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

STEPS = 5
STAGES = (1, 2, 3)
LAYOUTS = {
    2: [
        *(Layout(zero_stage=stage, micro_batch_tokens=64) for stage in STAGES),
        *(Layout(tensor=2, zero_stage=stage) for stage in STAGES),
    ],
    4: [Layout(tensor=2, zero_stage=stage, sequence=True, micro_batch_tokens=64) for stage in STAGES],
}
SAVINGS = {
    "": [],
    "blocks": ["parallel.recompute=blocks"],
    "selective": ["parallel.recompute=selective"],
    "offload": ["parallel.offload_optimizer=true"],
}
SCALE = {"fp16": ["training.fp16_scale_power=8"]}
BOUNDS = {"fp32": 1e-5, "bf16": 3e-3, "fp16": 1e-3}
"""Of losses against one process in fp32."""
TWO_OPTIMISERS = 3e-4
"""Of losses against no offload, in bf16 under ZeRO-1: there DeepSpeed has an optimiser of its own, and another one with
offload. Their gradient norms differ in the last bit of fp32, which turns the rounding of some weights where gradients are
clipped; with `optimizer.clip_norm=0` they are equal bit for bit, as all other rows are."""
ORDER_STEPS = 8


def measure(folder: Path, families: list[str]) -> list[dict[str, Any]]:
    """A row per family, precision, layout and saving: deviations from one process in fp32, and from no saving."""
    recipe, rows = prepare_tiny_recipe(folder), []
    fp16 = ["fp16"] if torch.ops.mkldnn._is_mkldnn_fp16_supported() else []
    for family in families:
        single = single_process(recipe, family, STEPS)
        for ranks, layouts in LAYOUTS.items():
            # fp16 differs from bf16 in the loss scale alone, so it takes the layouts without savings.
            chosen = [
                (precision, layout, saving)
                for precision in ("fp32", "bf16", *fp16)
                for layout in layouts
                for saving in SAVINGS
                if (saving == "" or precision == "bf16" or (precision == "fp32" and ranks == 4))
            ]
            cases = [
                Case(
                    layout,
                    family=family,
                    extra=[f"training.precision={precision}", *SCALE.get(precision, []), *SAVINGS[saving]],
                )
                for precision, layout, saving in chosen
            ]
            results = run_cases(run, recipe, folder / f"{family}-{ranks}.json", ranks, cases, STEPS)
            plain = {
                (precision, result["name"]): result["losses"]
                for (precision, _, saving), result in zip(chosen, results, strict=True)
                if not saving
            }
            for (precision, _, saving), result in zip(chosen, results, strict=True):
                rows.append(
                    {
                        "family": family,
                        "ranks": ranks,
                        "layout": result["name"],
                        "objectives": "those of the table",
                        "precision": precision,
                        "saving": saving,
                        "loss": deviation(result["losses"], single["losses"]),
                        "gradient_norm": deviation(result["norms"], single["norms"]),
                        "from_plain": deviation(result["losses"], plain[precision, result["name"]]),
                    }
                )
    return rows


def measure_orders(folder: Path) -> list[dict[str, Any]]:
    """A row per order of objectives, sharding, precision and offload (layouts.py), on two ranks."""
    folder.mkdir()
    recipe = prepare_tiny_recipe(folder)
    chosen = [(order, "ZeRO-0", "fp32", False) for order in ORDERS]
    chosen += list(itertools.product(ORDERS, SHARDED, ("fp32", "bf16"), (False, True)))
    results = run_cases(run, recipe, folder / "orders.json", 2, [order_case(*key) for key in chosen], ORDER_STEPS)
    found = dict(zip(chosen, results, strict=True))
    singles: dict[tuple[str, ...], dict[str, Any]] = {}
    rows = []
    for (order, sharding, precision, offload), result in found.items():
        extra = tuple(field for field in order_fields(order, sharding, precision) if not field.startswith("training."))
        single = singles.setdefault(extra, single_process(recipe, "xlmr", ORDER_STEPS, extra))
        plain = found[order, sharding, precision, False]
        rows.append(
            {
                "family": "xlmr",
                "ranks": 2,
                "layout": result["name"],
                "objectives": order + (", not clipped" if "optimizer.clip_norm=0" in extra else ""),
                "precision": precision,
                "saving": "offload" if offload else "",
                "loss": deviation(result["losses"], single["losses"]),
                "gradient_norm": deviation(result["norms"], single["norms"]),
                "from_plain": deviation(result["losses"], plain["losses"]),
            }
        )
    return rows


def keeps(row: dict[str, Any]) -> bool:
    """Whether a row keeps to the bounds."""
    two = row["saving"] == "offload" and row["precision"] == "bf16" and "ZeRO-1" in row["layout"]
    apart = TWO_OPTIMISERS if two and "not clipped" not in row["objectives"] else 0.0
    return row["loss"] < BOUNDS[row["precision"]] and row["from_plain"] <= apart


def write(rows: list[dict[str, Any]], path: Path) -> bool:
    """The table as Markdown and JSON; whether all rows keep to the bounds."""
    facts = environment()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "deepspeed", "megatron-core"))
    bounds = ", ".join(f"{precision} {bound:.0e}" for precision, bound in BOUNDS.items())
    head = [
        "# Precision, recomputation and offload against one process in fp32",
        "",
        f"`make precision` on {facts['date']}, commit {facts['commit']}, {facts['device']} ({facts['cpu_cores']} cores)"
        f", {versions}, gloo.",
        "",
        f"The model and data of the layouts' table, {STEPS} steps. Reference: one process in fp32 with torch's AdamW. "
        f"Largest relative deviation of any step's loss (bounds: {bounds}) and gradient norm; in the last column of any "
        "loss from the same layout without recomputation and offload (bound: 0; offload in bf16 under ZeRO-1, where "
        f"gradients are clipped, {TWO_OPTIMISERS:.0e}). The rows with other objectives are of {ORDER_STEPS} steps; "
        "some steps do not reach every parameter.",
        "",
        "| family | layout | objectives | precision | saving | loss | gradient norm | from plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines = [
        f"| {r['family']} | {r['layout']} | {r['objectives']} | {r['precision']} | {r['saving'] or 'none'} "
        f"| {r['loss']:.1e} | {r['gradient_norm']:.1e} | {r['from_plain']:.0e} |{'' if keeps(r) else ' BEYOND ITS BOUND'}"
        for r in rows
    ]
    path.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps({"environment": facts, "steps": STEPS, "rows": rows}, indent=1))
    return all(keeps(row) for row in rows)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        families = sys.argv[2:] or ["xlmr", "modern"]
        rows = [] if families == ["orders"] else measure(Path(folder), [name for name in families if name != "orders"])
        if families == ["xlmr", "modern"] or "orders" in families:
            rows += measure_orders(Path(folder) / "orders")
        return 0 if write(rows, Path(sys.argv[1])) else 1


if __name__ == "__main__":
    raise SystemExit(main())
