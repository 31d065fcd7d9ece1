"""launch/benchmark.py saving, on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_figures_as_json(tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]) -> None:
    scratch = tmp_path / "scratch"
    out = run_ranks(
        1,
        ROOT / "launch/benchmark.py",
        "saving",
        "--recipe",
        tiny_recipe,
        "--repeats",
        "2",
        "--tokens",
        "64",
        "--scratch",
        scratch,
        "--json",
        "training.checkpoint_interval=8",
    )
    figures = json.loads(out)
    assert figures["checkpoint_interval"] == 8
    assert len(figures["rows"]) == figures["repeats"] == 2
    # Weights and two moments of fp32, and a little for headers and the manifest.
    assert 12 * figures["parameters"] < figures["megabytes"] * 1e6 < 12 * figures["parameters"] + 20_000
    for row in figures["rows"]:
        assert min(row["blocking_seconds"], row["step_seconds"], row["background_stall_seconds"], row["copy_seconds"]) > 0
        assert row["steps_beside_a_save"] >= 1
    assert figures["stall_share_min"] <= figures["stall_share_of_blocking"] <= figures["stall_share_max"]
    assert figures["environment"]["versions"]["torch"]
    assert list(scratch.iterdir()) == []
