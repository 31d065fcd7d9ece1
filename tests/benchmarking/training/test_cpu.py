"""What `launch/benchmark.py cpu` compares: the same work on every side, and nothing left changed."""

from __future__ import annotations

import pytest
import torch

from dist_metaxlm.benchmarking.training import cpu, turns, updates
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.kernels.pointwise import dropout
from dist_metaxlm.recipe.load import load_recipe


def test_rows_are_compared_on_a_batch() -> None:
    cuts = torch.arange(0, 257, 8, dtype=torch.int32)
    batch = PackedBatch.outline(torch.arange(8).repeat(32), cuts, torch.arange(2), 128)
    found = cpu.compare_rows(batch, load_recipe("quickstart", []), 1)
    assert found["moved"]
    assert (found["documents"], found["median_length"], found["slots_per_token"]) == (32, 8, 1)
    assert found["windows_to_rows"]["median"] > 0


def test_a_constant_is_changed_only_meanwhile() -> None:
    before, seen = dropout.PART_WORDS, []
    cpu.changed(dropout, "PART_WORDS", 3, lambda: seen.append(dropout.PART_WORDS))()
    with pytest.raises(ZeroDivisionError):
        cpu.changed(dropout, "PART_WORDS", 3, lambda: seen.append(1 // 0))()
    assert (seen, dropout.PART_WORDS) == ([3], before)


def test_sides_take_turns_and_ratios_are_of_one_turn() -> None:
    order: list[str] = []
    seconds = turns.interleaved_timings({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * (turns.WARM_UP + 2)
    assert len(seconds["a"]) == len(seconds["b"]) == 2
    assert turns.ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 1.0, 2.0]}, "a", "b") == {"median": 2, "least": 2, "greatest": 9}


def test_kinds_of_adamw_agree() -> None:
    kinds = [name for name in updates.KINDS if name != updates.DEEPSPEED]
    found = updates.differences([40, 7], load_recipe("quickstart", []).optimizer, 1e-3, kinds)
    assert found.keys() == set(kinds) - {updates.OURS}
    assert max(found.values()) < 1e-5
