"""Under ZeRO-3 no rank holds more than its pieces and one parameter while the model is built; the bits are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

# xlmr-base, with 8 layers and 40,000 ids: 88 million parameters.
SHAPE = ("xlmr-base", "model.layers=8", "model.vocab_size=40000", "training.precision=bf16", "parallel.zero_stage=3")
SLACK = 48 * 2**20
"""Allowance for what the allocator keeps, in bytes."""


@pytest.mark.parametrize(("ranks", "layout"), [(1, []), (2, []), (2, ["parallel.tensor=2"])], ids=["1", "2", "TP2"])
def test_a_rank_holds_its_pieces_and_one_parameter(
    ranks: int, layout: list[str], run_ranks: Callable[..., str], tmp_path: Path
) -> None:
    name, *overrides = SHAPE
    output = tmp_path / "memory"
    run_ranks(ranks, Path(__file__).with_name("worker_start_memory.py"), name, output, *overrides, *layout)
    for rank in range(ranks):
        result = json.loads(output.with_name(f"memory.{rank}").read_text())
        assert result["equal"], "the pieces are not those of the whole model's weights"
        total, largest = sum(result["sizes"]), max(result["sizes"])
        assert 80e6 / (2 if layout else 1) < total < 100e6
        # In bf16 the pieces, and of one parameter the whole in fp32, this rank's part in fp32, and that rounded, twice while
        # it is cut.
        drawn = 4 * largest * (3 if layout else 1) + 4 * largest
        assert result["deferred"] < 2 * total / result["ranks"] + drawn + SLACK, result
        assert result["whole"] > 4 * total - SLACK, "the measurement does not see the whole model"
