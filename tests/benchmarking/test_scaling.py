"""The scaling benchmark: what it counts as communication, which batches weak scaling has, and one real run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_metaxlm.benchmarking.scaling import _jobs, measure_scaling, plot, table
from dist_metaxlm.benchmarking.trace import covered
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe


def test_overlapping_communication_counts_once() -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 4.0
    assert covered([]) == 0.0


def test_every_layout_runs_once_and_weak_scaling_multiplies_every_batch() -> None:
    jobs = _jobs(load_recipe("quickstart"), "quickstart", ["seed=3"], "cross", [1, 2, 4], 5)
    assert len(jobs) == 1 + 2 * 3 * 2
    ranks, job = jobs["weak pipeline 4"]
    assert ranks == 4
    grown = load_recipe("quickstart", job["overrides"])
    assert [grown.seed, grown.parallel.pipeline] == [3, 4]
    mlm, tlm, contrast = grown.phases["cross"].objectives
    assert [mlm.batch_tokens, tlm.batch_tokens, contrast.pairs, contrast.group] == [8192, 8192, 768, 192]
    assert jobs["strong tensor 2"][1]["overrides"] == ["seed=3", "parallel.tensor=2"]


def test_one_rank_is_measured_and_drawn(tiny_recipe: Path, tmp_path: Path) -> None:
    result = measure_scaling(str(tiny_recipe), [], "joint", [1], steps=1, repeats=1)
    [row] = result["rows"]
    assert row["tokens_per_step"] == 384
    assert row["speed_up"] == row["efficiency"] == 1.0
    assert row["communication_share"] < 0.2
    assert table(result).count("\n") == 2
    plot(result, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no phase 'later'"):
        measure_scaling(str(tiny_recipe), [], "later", [1], 1, 1)
