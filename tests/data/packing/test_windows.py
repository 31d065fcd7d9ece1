"""Windows of a ring of tokens: each once an epoch, shifted from epoch to epoch, cut where documents end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.packing.spans import groups, positions_within, spans
from dist_metaxlm.data.packing.windows import Windows
from dist_metaxlm.errors import UserError


def _corpus(lengths: list[int]) -> SimpleNamespace:
    """Documents of these lengths; the token at place i is i, so that a window tells where it came from."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return SimpleNamespace(tokens=np.arange(starts[-1], dtype=np.int32), document_starts=starts)


LENGTHS = st.lists(st.integers(1, 40), min_size=8, max_size=60)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, length=st.integers(2, 16), seed=st.integers(0, 100))
def test_each_window_once_an_epoch(lengths: list[int], length: int, seed: int) -> None:
    lengths[0] += 4 * length
    windows = Windows([_corpus(lengths)], ["xx"], length, (seed, "cross"))
    total = sum(lengths)
    count = total // length
    for epoch in range(6):
        ordinals = np.arange(epoch * count, (epoch + 1) * count)
        starts = windows.locate(np.zeros(count, np.int64), ordinals)
        tokens, _ = windows.read(windows.pieces(np.zeros(count, np.int64), starts), count)
        assert len(np.unique(tokens)) == count * length  # no token of the ring twice
        assert np.array_equal(tokens, (starts[:, None] + np.arange(length)) % total)


def test_the_grid_shifts_from_epoch_to_epoch() -> None:
    windows = Windows([_corpus([160])], ["xx"], 16, (1,))
    starts = windows.locate(np.zeros(200, np.int64), np.arange(200)).reshape(20, 10)
    assert np.all(starts % 16 == starts[:, :1] % 16)
    assert len(np.unique(starts[:, 0] % 16)) > 8


@settings(max_examples=60, deadline=None)
@given(data=st.data(), length=st.integers(2, 16))
def test_documents_are_those_of_the_corpora(data: st.DataObject, length: int) -> None:
    corpora = [_corpus(data.draw(LENGTHS)) for _ in range(3)]
    totals = [len(corpus.tokens) for corpus in corpora]
    length = min(length, *totals)
    windows = Windows(corpora, ["a", "b", "c"], length, (1,))
    corpus = np.array(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12)))
    starts = np.array([data.draw(st.integers(0, totals[number] - 1)) for number in corpus])
    tokens, documents = windows.read(windows.pieces(corpus, starts), len(corpus))
    expected = []
    for row, (number, start) in enumerate(zip(corpus, starts, strict=True)):
        borders = set(corpora[number].document_starts.tolist())
        for place in range(length):
            source = (start + place) % totals[number]
            assert tokens[row, place] == source
            if place == 0 or source in borders:
                expected.append(row * length + place)
    assert documents.tolist() == expected


def test_order_differs_between_epochs_seeds_and_languages() -> None:
    corpora = [_corpus([1000]), _corpus([1000])]
    zeros, ordinals = np.zeros(100, np.int64), np.arange(100)
    first = Windows(corpora, ["a", "b"], 10, (1,))
    starts = first.locate(zeros, ordinals)
    others = [
        first.locate(zeros, ordinals + 100),
        first.locate(zeros + 1, ordinals),
        Windows(corpora, ["a", "b"], 10, (2,)).locate(zeros, ordinals),
    ]
    assert all(np.mean(starts == other) < 0.1 for other in others)


def test_a_window_may_be_the_whole_ring() -> None:
    windows = Windows([_corpus([3, 5])], ["xx"], 8, (1,))
    corpus, ordinals = np.zeros(5, np.int64), np.arange(5)
    tokens, documents = windows.read(windows.pieces(corpus, windows.locate(corpus, ordinals)), 5)
    assert np.array_equal(np.sort(tokens, axis=1), np.tile(np.arange(8), (5, 1)))
    assert set(range(0, 40, 8)) <= set(documents.tolist())


def test_a_language_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"language sw has 7 tokens.*sequence_length 8.*smaller sequence_length"):
        Windows([_corpus([30]), _corpus([3, 4])], ["language en", "language sw"], 8, (1,))


def test_ragged_helpers() -> None:
    assert spans(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert spans(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []
    assert positions_within(np.array([0, 3, 4]), 8).tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert groups(np.array([2, 2, 5])) == [(2, slice(0, 2)), (5, slice(2, 3))]
    assert groups(np.empty(0, np.int64)) == []
