"""Few combinations of several settings in which each pair of values of two settings occurs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]


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
