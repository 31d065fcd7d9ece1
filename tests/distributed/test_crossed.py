"""Layouts crossed with offload, precision, orders of objectives and a stop in the middle (`make layouts` has more ranks)."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from crossed import BOUNDS, LAYOUTS, continues_bitwise, keeps, measure, pairs_of, pairwise, rows
from layouts import OPTIMIZERS


def test_every_legal_pair_occurs() -> None:
    for ranks, layouts in LAYOUTS.items():
        chosen = rows(ranks)
        assert len(chosen) <= 6 * len(layouts)
        covered = set().union(*map(pairs_of, chosen))
        for layout, precision, offload in itertools.product(layouts, BOUNDS, (False, True)):
            masters = layouts[layout].zero_stage > 0
            assert ((("layout", layout), ("precision", precision)) in covered) == (masters or precision == "fp32")
            assert ((("layout", layout), ("offload", offload)) in covered) == (masters or not offload)
        assert (("objectives", "drawn ones miss layers"), ("resumed", True)) in covered
        for layout, optimizer in itertools.product(layouts, OPTIMIZERS):
            assert (("layout", layout), ("optimizer", optimizer)) in covered
        assert all((("resumed", True), ("optimizer", optimizer)) in covered for optimizer in OPTIMIZERS)


def test_pairs_are_covered_in_few_rows_and_always_the_same() -> None:
    settings = {name: range(3) for name in "abcd"}
    chosen = pairwise(settings)
    assert 9 <= len(chosen) <= 15
    assert len(set().union(*map(pairs_of, chosen))) == 6 * 9
    assert chosen == pairwise(settings)
    assert all(row["a"] != row["b"] for row in pairwise(settings, lambda row: row["a"] != row["b"]))


def test_a_resumed_run_that_differs_in_one_bit_is_noticed() -> None:
    whole = {"losses": [2.0, 1.0], "norms": [1.0, 0.5], "final": "ab"}
    first, rest = {"losses": [2.0], "norms": [1.0], "final": "aa"}, {"losses": [1.0], "norms": [0.5], "final": "ab"}
    assert continues_bitwise(whole, [first, rest])
    assert continues_bitwise(whole, [])
    assert not continues_bitwise(whole, [first, {**rest, "final": "ac"}])
    assert not continues_bitwise(whole, [first, {**rest, "norms": [0.5000001]}])


def test_crossed_layouts_do_what_plain_torch_does(tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]) -> None:
    measured = measure(run_ranks, tiny_recipe, tmp_path, 2, rows(2))
    assert not [row for row in measured if not keeps(row)]
