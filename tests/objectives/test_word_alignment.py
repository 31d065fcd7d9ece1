"""Links from similarities, against references that take one pair at a time, cell by cell."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

from dist_metaxlm.objectives.word_alignment import extract, itermax, mutual_argmax, sinkhorn

sys.path.insert(0, str(Path(__file__).parent))
from pair_references import Links, best_of_both, reference_itermax, reference_sinkhorn


def links_of(found: torch.Tensor) -> Links:
    return {(int(i), int(j)) for i, j in found.nonzero()}


def tables(count: int, low: float) -> list[torch.Tensor]:
    """Random tables of 1 to 9 rows and columns; every third has values that come twice."""
    rng, generator = random.Random(4), torch.Generator().manual_seed(4)
    found = []
    for number in range(count):
        table = torch.rand(rng.randint(1, 9), rng.randint(1, 9), generator=generator, dtype=torch.float64) * (1 - low) + low
        found.append((table * 8).round() / 8 if number % 3 == 0 else table)
    return found


def blocks(of: list[torch.Tensor], size: int) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, int]]]:
    """Tables side by side along the diagonals of `size` x `size` blocks as long as they fit; where each one lies."""
    places, block, row, column = [], 0, 0, 0
    for table in of:
        if max(row + table.shape[0], column + table.shape[1]) > size:
            block, row, column = block + 1, 0, 0
        places.append((block, row, column))
        row, column = row + table.shape[0], column + table.shape[1]
    values = torch.randn(block + 1, size, size, dtype=torch.float64)
    allowed = torch.zeros_like(values, dtype=torch.bool)
    for table, (b, r, c) in zip(of, places, strict=True):
        values[b, r : r + table.shape[0], c : c + table.shape[1]] = table
        allowed[b, r : r + table.shape[0], c : c + table.shape[1]] = True
    return values, allowed, places


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_itermax_of_many_pairs_at_once_is_that_of_each_alone(rounds: int) -> None:
    cases = tables(240, 0.05)
    values, allowed, places = blocks(cases, 24)
    found = itermax(values, allowed, rounds)
    assert not (found & ~allowed).any()
    for table, (block, row, column) in zip(cases, places, strict=True):
        part = found[block, row : row + table.shape[0], column : column + table.shape[1]]
        assert links_of(part) == reference_itermax(table.tolist(), rounds)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_transport_of_many_pairs_at_once_is_that_of_each_alone(iterations: int) -> None:
    cases = tables(120, -0.3)
    values, allowed, places = blocks(cases, 24)
    by_row, by_column = sinkhorn(values, allowed, iterations)
    links = mutual_argmax(by_row, by_column, allowed)
    assert not by_row[~allowed].any()
    for table, (block, row, column) in zip(cases, places, strict=True):
        where = block, slice(row, row + table.shape[0]), slice(column, column + table.shape[1])
        for found, expected in zip((by_row, by_column), reference_sinkhorn(table.tolist(), iterations), strict=True):
            torch.testing.assert_close(found[where], torch.tensor(expected, dtype=torch.float64))
        exact = by_row[where].tolist(), by_column[where].tolist()
        assert links_of(links[where]) == best_of_both(
            *exact, {(i, j) for i in range(table.shape[0]) for j in range(table.shape[1])}
        )


def test_a_shuffled_sentence_is_found_again() -> None:
    generator = torch.Generator().manual_seed(1)
    states, order = torch.randn(1, 12, 32, generator=generator), torch.randperm(12, generator=generator)
    allowed = torch.ones(1, 12, 12, dtype=torch.bool)
    expected = {(int(old), new) for new, old in enumerate(order)}
    for how in ("argmax", "itermax", "sinkhorn"):
        assert links_of(extract(states, states[:, order], allowed, how)[0]) == expected


def test_nothing_allowed_is_nothing_linked() -> None:
    states, allowed = torch.randn(2, 5, 8), torch.zeros(2, 5, 5, dtype=torch.bool)
    assert not any(extract(states, states, allowed, how).any() for how in ("argmax", "itermax", "sinkhorn"))
