"""StableAdamW makes the same update in every layout: its mean is over whole tensors, never over a shard."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from layouts import Case, deviation, run_cases, single_process

from dist_metaxlm.recipe.layout import Layout

STEPS = 4
# below 1, so that every tensor's rate is divided from the first step on
STABLE = ["optimizer.name=stable_adamw", "optimizer.update_clip=0.5"]
LAYOUTS = [
    Layout(zero_stage=3),
    Layout(tensor=2, zero_stage=2, sequence=True),
    Layout(tensor=2, pipeline=2),
    Layout(tensor=4, zero_stage=0),
]


def test_every_layout_makes_the_same_update(tiny_recipe: Path, run_ranks: Callable[..., str], tmp_path: Path) -> None:
    single = single_process(tiny_recipe, "xlmr", STEPS, STABLE)
    cases = [Case(layout, extra=STABLE) for layout in LAYOUTS]
    cases[0].extra = [*STABLE, "parallel.offload_optimizer=true"]
    rows = run_cases(run_ranks, tiny_recipe, tmp_path / "stable.json", 4, cases, STEPS)
    assert single["losses"] != single_process(tiny_recipe, "xlmr", STEPS, [])["losses"]
    for row in rows:
        assert deviation(row["losses"], single["losses"]) < 1e-5, row["name"]
        assert deviation(row["norms"], single["norms"]) < 1e-4, row["name"]
        weights = row["weights"]
        assert deviation(list(weights.values()), [single["weights"][name] for name in weights]) < 1e-5, row["name"]
