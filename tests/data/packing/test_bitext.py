"""TLM windows: whole pairs in either order, each once an epoch, packed with little padding."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.packing.bitext import BitextWindows, swap_sides
from dist_metaxlm.data.special_tokens import PAD
from dist_metaxlm.errors import UserError

LENGTH = 24


def _pairs(corpora: list[SimpleNamespace]) -> dict[tuple[int, ...], bool]:
    """Each pair's tokens as stored (False) and with its sides swapped (True)."""
    found = {}
    for corpus in corpora:
        bounds = zip(corpus.document_starts, corpus.second_starts, corpus.document_starts[1:], strict=False)
        for start, second, end in bounds:
            first_side, second_side = corpus.tokens[start + 1 : second].tolist(), corpus.tokens[second:end].tolist()
            found[(0, *first_side, *second_side)] = False
            found[(0, *second_side, *first_side)] = True
    return found


SIDES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=8, max_size=40)


@settings(max_examples=80, deadline=None)
@given(left=SIDES, right=SIDES, first=st.integers(0, 1000))
def test_windows_hold_whole_pairs_and_padding(bitext, left: list, right: list, first: int) -> None:
    corpora = [bitext(left, 100), bitext(right, 10_000)]
    windows = BitextWindows(corpora, ["a-b", "a-c"], LENGTH, (3, "cross", "tlm"))
    samples = np.arange(first, first + 6)
    read = windows.read(samples % 2, samples // 2, samples)
    known = _pairs(corpora)
    flat = read.tokens.reshape(-1)
    for start, end in zip(read.documents, [*read.documents[1:], flat.size], strict=True):
        assert start // LENGTH == (end - 1) // LENGTH
        assert tuple(flat[start:end].tolist()) in known or (flat[start:end] == PAD).all()
    assert set(range(0, flat.size, LENGTH)) <= set(read.documents.tolist())


@settings(max_examples=60, deadline=None)
@given(
    sides=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=900),
    length=st.sampled_from([64, 100, 256]),
    seed=st.integers(0, 99),
)
def test_no_pair_comes_twice_in_an_epoch(bitext, sides: list, length: int, seed: int) -> None:
    windows = BitextWindows([bitext(sides, 4)], ["a-b"], length, (seed,))
    count = int(windows.counts[0])
    for epoch in range(3):
        placed = windows.locate(np.zeros(count, np.int64), np.arange(count) + epoch * count)
        assert len(np.unique(placed.pair)) == len(placed.pair) <= len(sides)
        assert np.array_equal(placed.end - placed.first, np.array([sum(sides[pair]) + 3 for pair in placed.pair]))


def test_few_pairs_are_left_out_others_each_epoch_and_little_is_padding(bitext) -> None:
    generator = np.random.default_rng(1)
    # lengths as in real bitext: skewed, and neighbours alike
    base = np.repeat(np.exp(generator.normal(2.0, 0.6, 300)), 20)
    sides = np.clip(base[:, None] * np.exp(generator.normal(0, 0.2, (6000, 2))), 1, 60).astype(int).tolist()
    windows = BitextWindows([bitext([tuple(pair) for pair in sides], 4)], ["a-b"], 128, (1,))
    count = int(windows.counts[0])
    left = []
    for epoch in range(3):
        placed = windows.locate(np.zeros(count, np.int64), np.arange(count) + epoch * count)
        left.append(set(range(6000)) - set(placed.pair.tolist()))
        assert len(left[-1]) < 120
        filled = np.bincount(placed.window, weights=placed.end - placed.first, minlength=count)
        assert filled.sum() / (count * 128) > 0.9
        assert filled.min() > 64
    assert len(left[0] & left[1] & left[2]) < 5


def test_about_half_of_the_pairs_are_swapped_and_windows_do_not_depend_on_the_batch(bitext) -> None:
    corpora = [bitext([(3, 4), (2, 2), (5, 1)] * 200, 100)]
    windows = BitextWindows(corpora, ["a-b"], LENGTH, (3,))
    samples = np.arange(300)
    read = windows.read(np.zeros_like(samples), samples, samples)
    known = _pairs(corpora)
    flat = read.tokens.reshape(-1)
    documents = [tuple(part.tolist()) for part in np.split(flat, read.documents[1:])]
    swapped = [known[document] for document in documents if document in known]
    assert len(swapped) > 400
    assert abs(np.mean(swapped) - 0.5) < 0.08
    some = np.array([250, 7, 99])
    again = BitextWindows(corpora, ["a-b"], LENGTH, (3,)).read(np.zeros_like(some), some, some)
    assert np.array_equal(again.tokens, read.tokens[some])


def test_swapping_twice_gives_the_pair_back(bitext) -> None:
    corpus = bitext([(3, 5), (1, 1)], 10)
    flat = corpus.tokens.copy()
    starts, end = corpus.document_starts[:-1], corpus.document_starts[1:]
    swap_sides(flat, starts, corpus.second_starts, end)
    assert flat[:11].tolist() == [0, 15, 16, 17, 18, 19, 2, 10, 11, 12, 2]
    swap_sides(flat, starts, starts + (end - corpus.second_starts) + 1, end)
    assert np.array_equal(flat, corpus.tokens)


def test_corpora_that_cannot_be_packed_are_refused(bitext) -> None:
    with pytest.raises(UserError, match=r"a-b has pairs of 83 tokens on average, more than sequence_length 64"):
        BitextWindows([bitext([(40, 40)] * 3, 4)], ["a-b"], 64, (1,))
    empty = bitext([], 4)
    with pytest.raises(UserError, match="a-b has no translation pair"):
        BitextWindows([empty], ["a-b"], 64, (1,))
