"""Shares: the power law in integers, with languages left out."""

from __future__ import annotations

import numpy as np
import pytest

from dist_metaxlm.data.shares import integer_shares, split_shares


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
