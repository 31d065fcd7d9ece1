"""The mix of languages: exact quotas, every ordinal once, schedules, unlocks, caps and sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.sampling.mixing import Mixture
from dist_metaxlm.data.sampling.shares import Mix

COUNTS = st.lists(st.integers(1, 10**12), min_size=1, max_size=40)
ALPHAS = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])
SCHEDULES = st.lists(st.tuples(st.integers(0, 9000), ALPHAS), min_size=1, max_size=4)
BLOCKS = 12


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    """Any mix that can be served: schedule, unlocks, repetition caps and sources, each there or not."""
    counts = draw(COUNTS)
    unlocks = [0, *draw(st.lists(st.sampled_from([0, 1500, 6000]), min_size=len(counts) - 1, max_size=len(counts) - 1))]
    parts = None
    if draw(st.booleans()):
        parts = [draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=3)) for _ in counts]
    limits, samples = None, 0
    if draw(st.booleans()):
        samples = draw(st.integers(1000, 20_000))
        limits = draw(st.lists(st.integers(0, 5000), min_size=len(counts), max_size=len(counts)))
        limits[0] = draw(st.sampled_from([samples, 2 * samples]))  # the first is never locked, so the phase can be filled
    return Mix(counts, draw(SCHEDULES), unlocks if draw(st.booleans()) else None, limits, samples, parts)


@settings(max_examples=120, deadline=None)
@given(mix=mixes(), seed=st.integers(0, 2**63))
def test_each_ordinal_once_and_prefixes_within_one_block(mix: Mix, seed: int) -> None:
    mixture = Mixture(mix, seed)
    source, ordinal = mixture.lookup(np.arange(BLOCKS * mixture.block))
    sources = len(mixture.owner)
    for block in range(1, BLOCKS + 1):
        end = block * mixture.block
        realised = np.bincount(source[:end], minlength=sources)
        for number in np.flatnonzero(realised):
            assert np.array_equal(np.sort(ordinal[:end][source[:end] == number]), np.arange(realised[number]))
        by_language = np.bincount(mixture.owner, weights=realised, minlength=len(mix.counts))
        asked = mixture.shares_so_far(end) * end
        # a source may lose one sample a segment (schedule points, unlocks) to rounding; the largest has what they lost
        segments = len(mix.schedule) + 3
        assert np.all(np.abs(by_language - asked) <= segments * sources + 1e-3)
        assert np.abs(by_language - asked).max() < mixture.block
    within = np.abs(np.bincount(source[: end - 300], minlength=sources) - realised).max()
    assert within <= 300


@settings(max_examples=80, deadline=None)
@given(mix=mixes(), first=st.integers(0, 10**11), data=st.data())
def test_lookup_is_a_function_of_the_sample_alone(mix: Mix, first: int, data: st.DataObject) -> None:
    mixture = Mixture(mix, 5)
    samples = np.arange(first, first + 300)
    source, ordinal = mixture.lookup(samples)
    shuffled = np.array(data.draw(st.permutations(range(300))))
    again = mixture.lookup(samples[shuffled])
    assert np.array_equal(again[0], source[shuffled])
    assert np.array_equal(again[1], ordinal[shuffled])


@settings(max_examples=120, deadline=None)
@given(mix=mixes())
def test_caps_and_unlocks_hold(mix: Mix) -> None:
    mixture = Mixture(mix, 7)
    total = max(mix.samples, 9000)
    samples = np.arange(-(-total // mixture.block) * mixture.block)
    language = mixture.owner[mixture.lookup(samples)[0]]
    for number, unlock in enumerate(mix.unlocks or []):
        shown = np.flatnonzero(language == number)
        assert not shown.size or shown[0] >= unlock - mixture.block / 2
    if mix.limits is not None:
        realised = np.bincount(language[: mix.samples], minlength=len(mix.counts))
        # what a cap leaves over goes by whole samples, so a few (one a source) may land on a capped language
        assert np.all(realised <= np.array(mix.limits) + mixture.block)
        whole = mix.samples // mixture.block * mixture.block == mix.samples
        assert not whole or np.all(realised <= np.array(mix.limits) + len(mixture.owner))


def test_a_cap_holds_from_the_start_and_its_surplus_goes_by_shares() -> None:
    mix = Mix([100, 100, 200], [(0, 1.0)], limits=[1024, 10**9, 10**9], samples=10 * 1024)
    mixture = Mixture(mix, 1)
    assert mixture.shares(0) == pytest.approx([0.1, 0.3, 0.6], abs=1e-6)
    language, _ = mixture.lookup(np.arange(10 * 1024))
    assert np.bincount(language) == pytest.approx([1024, 3072, 6144], abs=2)
    assert np.bincount(language[: 5 * 1024]) == pytest.approx([512, 1536, 3072], abs=2)


def test_a_cap_over_a_schedule_is_used_up_in_proportion() -> None:
    points = [(0, 1.0), (4 * 1024, 0.0)]
    free = Mixture(Mix([100, 900], points), 1)
    assert free.shares_so_far(8 * 1024)[0] == pytest.approx((0.1 + 0.5) / 2)
    capped = Mixture(Mix([100, 900], points, limits=[1200, 10**9], samples=8 * 1024), 1)
    assert capped.shares_so_far(8 * 1024)[0] * 8 * 1024 == pytest.approx(1200, abs=2)
    assert capped.shares(0)[0] / capped.shares(5 * 1024)[0] == pytest.approx(0.1 / 0.5, rel=0.01)


def test_a_language_that_unlocks_late_leaves_the_start_to_the_others() -> None:
    # the first language alone fills the first half, more than its pace, and has the less left for the second
    mix = Mix([500, 500], [(0, 1.0)], unlocks=[0, 4096], limits=[5000, 10**9], samples=8192)
    language, _ = Mixture(mix, 3).lookup(np.arange(8192))
    assert np.all(language[:4096] == 0)
    assert np.count_nonzero(language == 0) == pytest.approx(5000, abs=2)


def test_longest_phase_that_caps_and_unlocks_allow() -> None:
    assert Mix([10, 20], [(0, 0.5)], limits=[100, 200], samples=300).longest() is None
    assert Mix([10, 20], [(0, 0.5)], limits=[100, 200], samples=301).longest() == 300
    assert Mix([10, 20], [(0, 0.5)], [0, 150], [100, 900], 300).longest() == 100
    assert Mix([10, 20], [(0, 0.5)], [0, 90], [100, 900], 300).longest() is None


def test_sources_share_their_languages_samples_by_weight() -> None:
    mix = Mix([300, 700], [(0, 1.0)], parts=[[3, 1], [1]])
    mixture = Mixture(mix, 1)
    assert mixture.owner.tolist() == [0, 0, 1]
    source, _ = mixture.lookup(np.arange(40 * 1024))
    assert np.bincount(source) / (40 * 1024) == pytest.approx([0.225, 0.075, 0.7], abs=1e-4)
    assert mixture.shares(0) == pytest.approx([0.3, 0.7])


def test_quotas_far_out_are_exact() -> None:
    counts = [10**9, 3 * 10**6, 17]
    mixture = Mixture(Mix(counts, [(0, 0.3)]), 1)
    shares = [int(share * 2**40) for share in mixture.shares(0)]
    block = 2**41 // mixture.block
    first = block * mixture.block
    language, ordinal = mixture.lookup(np.arange(first, first + mixture.block))
    for number in (1, 2):
        start, stop = first * shares[number] >> 40, (first + mixture.block) * shares[number] >> 40
        assert sorted(ordinal[language == number].tolist()) == list(range(start, stop))


def test_schedule_changes_the_shares_at_the_nearest_block_border() -> None:
    mixture = Mixture(Mix([10**6, 10], [(0, 1.0), (5 * 1024 + 100, 0.0)]), 1)
    assert mixture.block == 1024
    assert mixture.shares(5 * 1024 - 1)[0] > 0.999
    assert mixture.shares(5 * 1024).tolist() == [0.5, 0.5]
    language, ordinal = mixture.lookup(np.arange(7 * 1024))
    assert np.count_nonzero(language[: 5 * 1024]) <= 1
    assert np.count_nonzero(language[5 * 1024 :]) == 1024
    assert np.array_equal(np.sort(ordinal[language == 1]), np.arange(np.count_nonzero(language)))


def test_first_alpha_holds_before_its_point() -> None:
    late, early = Mixture(Mix([100, 1], [(5000, 0.5)]), 1), Mixture(Mix([100, 1], [(0, 0.5)]), 1)
    assert np.array_equal(late.shares(0), early.shares(0))


def test_languages_are_spread_inside_a_block() -> None:
    language, _ = Mixture(Mix([1] * 8, [(0, 0.3)]), 9).lookup(np.arange(1024))
    for part in np.split(language, 8):
        assert np.all(np.bincount(part, minlength=8) < 40)  # evenly: 16 each


def test_many_languages_get_a_larger_block() -> None:
    mixture = Mixture(Mix([1] * 100, [(0, 0.0)]), 1)
    assert mixture.block >= 100 * 100
    assert mixture.block & (mixture.block - 1) == 0
