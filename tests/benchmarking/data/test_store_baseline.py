"""Megatron's way, which the store benchmark measures against, ends in the same files as ours."""

from __future__ import annotations

from pathlib import Path

from dist_metaxlm.benchmarking.data.store import _ratios
from dist_metaxlm.benchmarking.data.store_baseline import write_store
from dist_metaxlm.preparation.prepare import prepare
from dist_metaxlm.recipe.load import load_recipe


def test_both_ways_write_the_same_files(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, [f"data.directory={tmp_path / 'data'}", "data.heldout_strings=0"])
    prepare(recipe, lambda line: None, workers=1)
    for workers in (1, 2):
        target = tmp_path / f"baseline-{workers}"
        target.mkdir()
        write_store(recipe, target, workers)
        files = sorted(target.iterdir())
        assert [path.name for path in files] == [
            f"{name}.{end}" for name in ("de", "el", "en-de", "en-el", "en") for end in ("bin", "idx")
        ]
        for path in files:
            assert (tmp_path / "data" / "store" / path.name).read_bytes() == path.read_bytes(), path.name


def test_ratios_are_medians_of_what_ran_side_by_side() -> None:
    runs = {
        "baseline_1": [(4.0, 2.0), (9.0, 3.0), (8.0, 2.0)],
        "ours_1": [(2.0, 1.0), (3.0, 1.0), (8.0, 2.0)],
        "baseline_2": [(4.0, 4.0)] * 3,
        "ours_2": [(1.0, 2.0)] * 3,
    }
    found = _ratios(runs)
    assert (found["ours_against_baseline_1_core"], found["ours_against_baseline_1_core_cpu"]) == (2.0, 2.0)
    assert (found["two_processes_against_one"], found["ours_against_baseline_2_cores"]) == (3.0, 4.0)
    assert "two_mpi_ranks_against_one" not in found
