"""Shares: the power law in integers, with languages left out."""

from __future__ import annotations

import numpy as np
import pytest

from dist_metaxlm.data.sampling.shares import Mix, SharePlan, integer_shares, split_shares


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_shares_follow_the_power_law(alpha: float) -> None:
    counts = np.array([10**10, 10**7, 12_345, 1])
    shares = integer_shares(counts.tolist(), alpha)
    assert shares.sum() == 2**40
    expected = counts.astype(float) ** alpha
    assert np.allclose(shares / 2**40, expected / expected.sum(), atol=1e-9)


def test_a_language_that_is_not_there_has_no_share() -> None:
    shares = integer_shares([5, 7, 11], 0.5, [True, False, True])
    assert shares[1] == 0
    assert np.array_equal(shares[[0, 2]], integer_shares([5, 11], 0.5))


def test_split_keeps_sums_and_ratios() -> None:
    shares = np.array([[2**40 - 1000, 1000], [7, 2**40 - 7]], np.int64)
    split = split_shares(shares, [[1, 2], [5]])
    assert np.array_equal(split[:, :2].sum(axis=1), shares[:, 0])
    assert np.array_equal(split[:, 2], shares[:, 1])
    assert split[1].tolist()[:2] == [2, 5]


def test_a_fixed_share_is_kept_and_the_others_divide_the_rest() -> None:
    counts = [1000, 4000, 16_000]
    _, (shares, later) = SharePlan(Mix(counts, [(0, 0.5)], unlocks=[2048, 0, 0], fixed={0: 0.7})).segments(1024)
    assert np.allclose(shares / 2**40, [0, 1 / 3, 2 / 3])
    assert np.allclose(later / 2**40, [0.7, 0.1, 0.2])
    assert later.sum() == 2**40
    _, alone = SharePlan(Mix([5], [(0, 1.0)], fixed={0: 0.25})).segments(1024)
    assert alone.tolist() == [[2**40]]
    _, (before, after) = SharePlan(Mix(counts, [(0, 0.5)], unlocks=[2048, 0, 0], fixed={1: 0.6, 2: 0.2})).segments(1024)
    assert np.allclose(before / 2**40, [0, 0.75, 0.25])
    assert np.allclose(after / 2**40, [0.2, 0.6, 0.2])
    assert before.sum() == after.sum() == 2**40
