"""Ragged ranges without loops over tokens."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[sum of lengths] int64: start, start + 1, ..., start + length - 1 of every span, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total, dtype=np.int64)


def positions_within(starts: np.ndarray, total: int) -> np.ndarray:
    """[total] int64: position of each token in its document; `starts` [D] are the documents' first tokens, from 0."""
    lengths = np.diff(starts, append=total)
    positions: np.ndarray = np.arange(total, dtype=np.int64) - np.repeat(starts, lengths)
    return positions


def groups(numbers: np.ndarray) -> list[tuple[int, slice]]:
    """(number, slice of its positions) for each run of equal values of `numbers` [n], which must be sorted."""
    if not len(numbers):
        return []
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [(int(numbers[start]), slice(start, stop)) for start, stop in pairwise(borders)]
