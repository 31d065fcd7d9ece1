"""TLM windows: whole pairs in either order, cut pairs inert."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_metaxlm.data.bitext import BitextWindows, swap_sides

LENGTH = 24


def _bitext(sides: list[tuple[int, int]], base: int) -> SimpleNamespace:
    """Pairs with sides of these many words; every word of the corpus has an id of its own, from `base` on."""
    tokens: list[int] = []
    starts, seconds = [0], []
    for first, second in sides:
        tokens += [0, *range(base + len(tokens), base + len(tokens) + first), 2]
        seconds.append(len(tokens))
        tokens += [*range(base + len(tokens), base + len(tokens) + second), 2]
        starts.append(len(tokens))
    return SimpleNamespace(tokens=np.array(tokens, np.int32), document_starts=np.array(starts, np.int64),
                           second_starts=np.array(seconds, np.int64))


def _pairs(corpora: list[SimpleNamespace]) -> dict[tuple[int, ...], bool]:
    """Each pair's tokens as stored (False) and with its sides swapped (True)."""
    found = {}
    for corpus in corpora:
        bounds = zip(corpus.document_starts, corpus.second_starts, corpus.document_starts[1:], strict=False)
        for start, second, end in bounds:
            first_side, second_side = corpus.tokens[start + 1:second].tolist(), corpus.tokens[second:end].tolist()
            found[(0, *first_side, *second_side)] = False
            found[(0, *second_side, *first_side)] = True
    return found


SIDES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=8, max_size=40)


@settings(max_examples=80, deadline=None)
@given(left=SIDES, right=SIDES, first=st.integers(0, 1000))
def test_pairs_are_whole_or_inert(left: list, right: list, first: int) -> None:
    corpora = [_bitext(left, 100), _bitext(right, 10_000)]
    windows = BitextWindows(corpora, ["a-b", "a-c"], LENGTH, (3, "cross", "tlm"))
    samples = np.arange(first, first + 6)
    read = windows.read(samples % 2, samples // 2, samples)
    known = _pairs(corpora)
    flat, inert = read.tokens.reshape(-1), read.inert.reshape(-1)
    cuts = 0
    for start, end in zip(read.documents, [*read.documents[1:], flat.size], strict=True):
        assert start // LENGTH == (end - 1) // LENGTH
        assert len(set(inert[start:end].tolist())) == 1
        whole = tuple(flat[start:end].tolist()) in known
        assert whole != inert[start]
        cuts += not whole
    assert cuts <= 2 * len(samples)  # at the two edges of a window; the seam of the ring cuts no pair


def test_about_half_of_the_pairs_are_swapped_and_windows_do_not_depend_on_the_batch() -> None:
    corpora = [_bitext([(3, 4), (2, 2), (5, 1)] * 200, 100)]
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
    again = windows.read(np.zeros_like(some), some, some)
    assert np.array_equal(again.tokens, read.tokens[some])
    assert np.array_equal(again.inert, read.inert[some])


def test_swapping_twice_gives_the_pair_back() -> None:
    corpus = _bitext([(3, 5), (1, 1)], 10)
    flat = corpus.tokens.copy()
    starts, end = corpus.document_starts[:-1], corpus.document_starts[1:]
    swap_sides(flat, starts, corpus.second_starts, end)
    assert flat[:11].tolist() == [0, 15, 16, 17, 18, 19, 2, 10, 11, 12, 2]
    swap_sides(flat, starts, starts + (end - corpus.second_starts) + 1, end)
    assert np.array_equal(flat, corpus.tokens)
