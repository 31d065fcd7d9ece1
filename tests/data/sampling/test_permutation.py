"""Keyed permutations are bijections and keyed hashes are uniform, independent of how they are asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.sampling.permutation import hash_u64, key, permute

KEYS = st.integers(0, 2**64 - 1)


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), stream=KEYS)
def test_permutation_is_a_bijection(n: int, stream: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, stream)), np.arange(n))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_index_may_have_its_own_domain_and_key(data: st.DataObject) -> None:
    bounds = np.array(data.draw(st.lists(st.integers(1, 2**45), min_size=1, max_size=30)))
    keys = np.array(data.draw(st.lists(KEYS, min_size=len(bounds), max_size=len(bounds))), np.uint64)
    index = bounds // 3
    together = permute(index, bounds, keys)
    assert np.all((together >= 0) & (together < bounds))
    alone = [int(permute(index[i : i + 1], int(bounds[i]), int(keys[i]))[0]) for i in range(len(bounds))]
    assert together.tolist() == alone


def test_huge_domains_stay_injective() -> None:
    n = 10**15 + 7
    image = permute(np.arange(n - 5000, n), n, 11)
    assert len(np.unique(image)) == 5000
    assert image.min() >= 0
    assert image.max() < n


def test_permutation_mixes_and_depends_on_the_key() -> None:
    n = 20_011
    first, second = permute(np.arange(n), n, key(1)), permute(np.arange(n), n, key(2))
    assert np.mean(first == second) < 0.001
    assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03
    counts = np.histogram(first[: n // 10], 20, (0, n))[0]
    assert np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 45  # chi square, 19 degrees: one in a thousand is 44


def test_values_are_the_same_on_every_machine() -> None:
    """Frozen values: a change of these changes the data order of every run that is under way."""
    assert key(1, "cross", "mlm") == 16257944751290853444
    assert hash_u64(7, np.arange(2)).tolist() == [1346066267577507604, 7191089600892374487]
    assert permute(np.arange(8), 1000, 42).tolist() == [899, 64, 117, 994, 7, 176, 773, 153]


def test_keys_tell_types_and_splits_apart() -> None:
    keys = [key("a", "b"), key("ab"), key("a,b"), key("b", "a"), key(1), key("1"), key(1, 1), key(11), key()]
    assert len(set(keys)) == len(keys)
    assert all(0 <= value < 2**64 for value in keys)


def test_hash_is_uniform_over_keys_and_counters() -> None:
    values = hash_u64(hash_u64(3, np.arange(500))[:, None], np.arange(64))
    assert values.shape == (500, 64)
    assert len(np.unique(values)) == values.size
    bits = np.unpackbits(values.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.all(np.abs(bits - 0.5) < 0.015)
