"""The mix of languages: exact quotas, every ordinal once, alpha schedules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.mixing import Mixture, integer_shares

COUNTS = st.lists(st.integers(1, 10**12), min_size=1, max_size=40)
ALPHAS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
SCHEDULES = st.lists(st.tuples(st.integers(0, 9000), ALPHAS), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, schedule=SCHEDULES, seed=st.integers(0, 2**63))
def test_each_ordinal_once_and_prefixes_within_one_block(counts: list[int], schedule: list, seed: int) -> None:
    mixture = Mixture(counts, schedule, seed)
    total = 12 * mixture.block
    language, ordinal = mixture.lookup(np.arange(total))
    asked = np.zeros(len(counts))
    for block in range(1, 13):
        asked += mixture.shares((block - 1) * mixture.block) * mixture.block
        realised = np.bincount(language[:block * mixture.block], minlength=len(counts))
        for number in np.flatnonzero(realised):
            mine = np.sort(ordinal[:block * mixture.block][language[:block * mixture.block] == number])
            assert np.array_equal(mine, np.arange(realised[number]))
        others = np.arange(len(counts)) != int(np.argmax(asked))
        slack = len(schedule) + 1e-3
        assert np.all(np.abs(realised - asked)[others] < slack * (1 if len(schedule) == 1 else len(counts)))
        assert np.all(np.abs(realised - asked) <= slack * len(counts))


@settings(max_examples=40, deadline=None)
@given(counts=COUNTS, schedule=SCHEDULES, first=st.integers(0, 10**11), data=st.data())
def test_lookup_is_a_function_of_the_sample_alone(counts: list[int], schedule: list, first: int, data) -> None:
    mixture = Mixture(counts, schedule, 5)
    samples = np.arange(first, first + 300)
    language, ordinal = mixture.lookup(samples)
    shuffled = np.array(data.draw(st.permutations(range(300))))
    again = mixture.lookup(samples[shuffled])
    assert np.array_equal(again[0], language[shuffled])
    assert np.array_equal(again[1], ordinal[shuffled])


def test_quotas_far_out_are_exact() -> None:
    counts = [10**9, 3 * 10**6, 17]
    mixture = Mixture(counts, [(0, 0.3)], 1)
    shares = integer_shares(counts, 0.3).tolist()
    block = 2**41 // mixture.block
    first = block * mixture.block
    language, ordinal = mixture.lookup(np.arange(first, first + mixture.block))
    for number in (1, 2):
        start, stop = first * shares[number] >> 40, (first + mixture.block) * shares[number] >> 40
        assert sorted(ordinal[language == number].tolist()) == list(range(start, stop))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_shares_follow_the_power_law(alpha: float) -> None:
    counts = np.array([10**10, 10**7, 12_345, 1])
    shares = integer_shares(counts.tolist(), alpha)
    assert shares.sum() == 2**40
    expected = counts.astype(float) ** alpha
    assert np.allclose(shares / 2**40, expected / expected.sum(), atol=1e-9)


def test_schedule_changes_the_shares_at_the_nearest_block_border() -> None:
    mixture = Mixture([10**6, 10], [(0, 1.0), (5 * 1024 + 100, 0.0)], 1)
    assert mixture.block == 1024
    assert mixture.shares(5 * 1024 - 1)[0] > 0.999
    assert mixture.shares(5 * 1024).tolist() == [0.5, 0.5]
    language, ordinal = mixture.lookup(np.arange(7 * 1024))
    assert np.count_nonzero(language[:5 * 1024]) <= 1
    assert np.count_nonzero(language[5 * 1024:]) == 1024
    assert np.array_equal(np.sort(ordinal[language == 1]), np.arange(np.count_nonzero(language)))


def test_first_alpha_holds_before_its_point() -> None:
    assert np.array_equal(Mixture([100, 1], [(5000, 0.5)], 1).shares(0), Mixture([100, 1], [(0, 0.5)], 1).shares(0))


def test_languages_are_spread_inside_a_block() -> None:
    language, _ = Mixture([1] * 8, [(0, 0.3)], 9).lookup(np.arange(1024))
    for part in np.split(language, 8):
        assert np.all(np.bincount(part, minlength=8) < 40)  # evenly: 16 each


def test_many_languages_get_a_larger_block() -> None:
    mixture = Mixture([1] * 100, [(0, 0.0)], 1)
    assert mixture.block >= 100 * 100
    assert mixture.block & (mixture.block - 1) == 0
