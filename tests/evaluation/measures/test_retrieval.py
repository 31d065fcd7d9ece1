"""P@1 on vectors whose answer is known: perfect, chance, ties; and which pairs are candidates."""

from __future__ import annotations

import pytest
import torch

from dist_metaxlm.evaluation.measures.retrieval import distinct_pairs, precision_at_1


def test_equal_spaces_are_found_whatever_their_scale():
    queries = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(1))
    assert precision_at_1(queries, queries * torch.rand(2, 50, 1) * 9) == [1.0, 1.0]


def test_unrelated_spaces_score_about_chance():
    generator = torch.Generator().manual_seed(2)
    queries, candidates = (torch.randn(1, 500, 64, generator=generator) for _ in range(2))
    assert precision_at_1(queries, candidates)[0] < 0.02


def test_layers_are_scored_apart():
    base = torch.eye(4)
    queries = torch.stack([base, base, base])
    candidates = torch.stack([base, base.flip(0), base[[0, 1, 3, 2]]])
    assert precision_at_1(queries, candidates) == [1.0, 0.0, 0.5]


def test_directions_can_differ():
    # Both candidates' nearest query is the second one, while each query's nearest candidate is its own.
    left = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    right = torch.tensor([[[0.6, 0.8], [0.0, 1.0]]])
    assert precision_at_1(left, right) == [1.0]
    assert precision_at_1(right, left) == [0.5]


def test_a_collapsed_model_scores_one_in_n():
    same = torch.ones(1, 40, 8)
    assert precision_at_1(same, same) == [pytest.approx(1 / 40)]


def test_a_tie_is_won_by_the_first():
    queries = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    assert precision_at_1(queries, queries) == [pytest.approx(2 / 3)]


def test_zero_vectors_are_no_error():
    assert precision_at_1(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)) == [pytest.approx(1 / 3)]


def test_candidates_are_distinct_on_both_sides_and_translated():
    first = [[1], [2], [1], [3], [4], [5], []]
    second = [[10], [20], [30], [20], [4], [50], [60]]
    assert distinct_pairs(first, second) == [0, 1, 5]
