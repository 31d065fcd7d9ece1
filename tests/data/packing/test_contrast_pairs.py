"""Contrast batches: the sentences that the store holds, each once an epoch, packed without overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.packing.contrast import ContrastPairs, first_fit
from dist_metaxlm.errors import UserError


def _cut(sentence: list[int], most: int) -> list[int]:
    return sentence if len(sentence) <= most else [*sentence[: most - 1], 2]


SIDES = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(left=SIDES, right=SIDES, length=st.integers(10, 40), most=st.integers(4, 10), first=st.integers(0, 100))
def test_documents_are_the_sentences_of_the_store(
    bitext, left: list, right: list, length: int, most: int, first: int
) -> None:
    corpora = [bitext(left, 100), bitext(right, 10_000)]
    pairs = ContrastPairs(corpora, ["a-b", "a-c"], length, (1,))
    ordinal = np.arange(first, first + 20)
    corpus = ordinal % 2
    documents = pairs.locate(corpus, ordinal)
    read = pairs.read(corpus, documents, most)
    flat = read.tokens.reshape(-1)
    ends = [*read.documents[1:].tolist(), flat.size]
    found = [flat[start:end].tolist() for start, end in zip(read.documents.tolist(), ends, strict=True)]
    for number, document, (one, two) in zip(corpus, documents, read.pairs, strict=True):
        store = corpora[number]
        start, end = store.document_starts[document : document + 2]
        second = store.second_starts[document]
        assert found[one] == _cut(store.tokens[start:second].tolist(), most)
        assert found[two] == _cut([0, *store.tokens[second:end].tolist()], most)
    padding = set(range(len(found))) - set(read.pairs.reshape(-1).tolist())
    assert all(set(found[number]) == {1} for number in padding)
    assert len(set(read.pairs.reshape(-1).tolist())) == 2 * len(corpus)
    assert set(range(0, flat.size, length)) <= set(read.documents.tolist())
    leading = [read.pairs.reshape(-1)[leader] for leader in read.leaders]
    assert read.documents[leading].tolist() == list(range(0, flat.size, length))


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=80), capacity=st.integers(20, 50))
def test_packing_is_first_fit_longest_first(lengths: list[int], capacity: int) -> None:
    bins, offsets, count = first_fit(np.array(lengths), capacity)
    free: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        fitting = [number for number, room in enumerate(free) if room >= lengths[item]]
        if not fitting:
            free.append(capacity)
            fitting = [len(free) - 1]
        assert bins[item] == fitting[0]
        assert offsets[item] == capacity - free[fitting[0]]
        free[fitting[0]] -= lengths[item]
    assert count == len(free)


def test_each_pair_once_an_epoch(bitext) -> None:
    pairs = ContrastPairs([bitext([(2, 2)] * 37, 100)], ["a-b"], 16, (1,))
    zeros = np.zeros(37, np.int64)
    first, second = pairs.locate(zeros, np.arange(37)), pairs.locate(zeros, np.arange(37, 74))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(37))
    assert first.tolist() != second.tolist()


def test_a_pair_without_text_is_refused(bitext) -> None:
    with pytest.raises(UserError, match="language pair en-sw has no translation pair"):
        ContrastPairs([bitext([], 100)], ["language pair en-sw"], 16, (1,))
