"""Windows of translation pairs for TLM: whole pairs `<s> a </s> b </s>` in either order.

A pair's stream is cut into windows like any text (windows.py). The tokens of a pair that a window's edge cuts are
inert: they keep their place as a document of their own and are never targets, so no pair is learnt from in half.

Shapes: W windows, L tokens a window, T = W * L, P whole pairs of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_metaxlm.data.permutation import hash_u64, key
from dist_metaxlm.data.spans import groups, spans
from dist_metaxlm.data.windows import Pieces, Windows, gather

if TYPE_CHECKING:
    from dist_metaxlm.data.store import Corpus


@dataclass(frozen=True)
class BitextRead:
    """Windows of pairs, each pair in the order in which it is shown."""

    tokens: np.ndarray
    """[W, L] int64."""
    documents: np.ndarray
    """[D] int64: first token of each pair and of each inert run in the flat batch, ascending."""
    inert: np.ndarray
    """[W, L] bool: tokens of pairs that a window's edge cuts."""


class BitextWindows:
    """The windows of several pairs' streams, by (language pair, ordinal)."""

    def __init__(self, corpora: Sequence[Corpus], names: Sequence[str], length: int,
                 keys: tuple[str | int, ...]) -> None:
        """As for `Windows`; the corpora are bitext, with `second_starts`."""
        self._windows = Windows(corpora, names, length, keys)
        self._document_starts = [np.asarray(corpus.document_starts) for corpus in corpora]
        self._second_starts = [np.asarray(corpus.second_starts) for corpus in corpora]
        self._swap_key = key(*keys, "swap")

    def read(self, corpus: np.ndarray, ordinal: np.ndarray, samples: np.ndarray) -> BitextRead:
        """Windows number `ordinal` of language pairs `corpus`, shown as sample numbers `samples` (all [W])."""
        pieces = self._windows.pieces(corpus, self._windows.locate(corpus, ordinal))
        tokens, documents = self._windows.read(pieces, len(corpus))
        first, second, end = self._whole_pairs(pieces)
        inert = np.ones(tokens.size, np.bool_)
        inert[spans(first, end - first)] = False
        length = self._windows.length
        draws = hash_u64(hash_u64(self._swap_key, samples)[first // length], first % length)
        chosen = (draws >> np.uint64(63)).astype(np.bool_)
        swap_sides(tokens.reshape(-1), first[chosen], second[chosen], end[chosen])
        return BitextRead(tokens, documents, inert.reshape(tokens.shape))

    def origin(self, corpus: np.ndarray, ordinal: np.ndarray) -> list[tuple[int, int]]:
        """[(flat position, first token in the corpus)] of the whole pairs of windows `ordinal` of `corpus` (both [W])."""
        pieces = self._windows.pieces(corpus, self._windows.locate(corpus, ordinal))
        first, _, _ = self._whole_pairs(pieces)
        piece = np.searchsorted(np.sort(pieces.destination), first, side="right") - 1
        order = np.argsort(pieces.destination, kind="stable")[piece]
        return list(zip(first.tolist(), (first - pieces.destination[order] + pieces.source[order]).tolist(), strict=True))

    def _whole_pairs(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([P] first token, [P] first of the second side, [P] end) in the flat batch of the pairs that are not cut."""
        low, count = np.empty_like(pieces.source), np.empty_like(pieces.source)
        for number, where in groups(pieces.corpus):
            starts, source = self._document_starts[number], pieces.source[where]
            low[where] = starts.searchsorted(source, side="left")
            high = starts.searchsorted(source + pieces.size[where], side="right") - 1
            count[where] = np.maximum(high - low[where], 0)
        shift = np.repeat(pieces.destination - pieces.source, count)
        first = gather(self._document_starts, pieces.corpus, low, count) + shift
        second = gather(self._second_starts, pieces.corpus, low, count) + shift
        end = gather(self._document_starts, pieces.corpus, low + 1, count) + shift
        return first, second, end


def swap_sides(flat: np.ndarray, first: np.ndarray, second: np.ndarray, end: np.ndarray) -> None:
    """Turn `<s> a </s> b </s>` into `<s> b </s> a </s>` in place, at `first`, `second`, `end` [P] of `flat`."""
    body = first + 1
    length = end - body
    target = spans(body, length)
    # everything after <s> turns by the length of the first side
    turned = (spans(np.zeros_like(length), length) + np.repeat(second - body, length)) % np.repeat(length, length)
    flat[target] = flat[np.repeat(body, length) + turned]
