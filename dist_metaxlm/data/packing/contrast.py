"""Translation pairs as separate sentences, packed into windows, for the contrast objective.

Sample n is a pair: a language pair by quota (mixing.py), and within it a pair by a keyed permutation of the epoch, so every
pair occurs once an epoch. Each sentence is a separate document; documents are packed first-fit, longest first.

Shapes: P pairs, documents 2P (pair p has the sentences 2p and 2p + 1), W windows of L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_metaxlm.data.packing.documents import with_padding
from dist_metaxlm.data.packing.ordered import OrderedPairs
from dist_metaxlm.data.packing.spans import groups, spans
from dist_metaxlm.data.sampling.permutation import hash_u64, permute
from dist_metaxlm.data.special_tokens import BOS, EOS, PAD
from dist_metaxlm.errors import UserError

if TYPE_CHECKING:
    from dist_metaxlm.data.tokens.store import Corpus


@dataclass(frozen=True)
class ContrastRead:
    """Sentences packed into windows."""

    tokens: np.ndarray
    """[W, L] int64; unfilled positions are `<pad>`."""
    documents: np.ndarray
    """[D] int64: first token of each sentence and of each window's padding in the flat batch, ascending."""
    pairs: np.ndarray
    """[P, 2] int64: document numbers of each pair's sentences."""
    leaders: np.ndarray
    """[W] int64: index of the first of the 2P sentences in each window."""


class ContrastPairs(OrderedPairs):
    """The pairs of several bitexts, by (language pair, ordinal)."""

    def __init__(self, corpora: Sequence[Corpus], names: Sequence[str], length: int, keys: tuple[str | int, ...]) -> None:
        """Pack pairs of `corpora`, called `names`, into windows of `length` tokens; `keys` name the random streams."""
        super().__init__(corpora, names, length, keys)
        self._counts = np.array([len(starts) - 1 for starts in self._document_starts], np.int64)
        empty = [name for name, count in zip(names, self._counts.tolist(), strict=True) if count < 1]
        if empty:
            verb, it = ("has", "it") if len(empty) == 1 else ("have", "them")
            raise UserError(
                f"{', '.join(empty)} {verb} no translation pair; prepare the store again with bitext for {it}, "
                f"or list phases.*.languages without {it}"
            )

    def locate(self, corpus: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
        """[P] int64: the document at place `ordinal` in the order of `corpus` (both [P]); ordinals from 0, unbounded."""
        count = self._counts[corpus]
        return permute(ordinal % count, count, hash_u64(self._order_keys[corpus], ordinal // count))

    def origin(self, corpus: np.ndarray, ordinal: np.ndarray) -> int:
        """First token, in its corpus, of the pair at place `ordinal` in the order of `corpus` (both [1])."""
        return int(self._document_starts[corpus[0]][self.locate(corpus, ordinal)[0]])

    def read(self, corpus: np.ndarray, documents: np.ndarray, max_tokens: int) -> ContrastRead:
        """Pack pairs `documents` of language pairs `corpus` (both [P]), sentences cut to `max_tokens`."""
        source, size, needs_bos = self.sentence_places(corpus, documents)
        length = np.minimum(size + needs_bos, max_tokens)
        placed = place(length, self.length)
        start = placed.start
        flat = np.full(placed.windows * self.length, PAD, np.int64)
        flat[start] = BOS
        kept = length - needs_bos
        order = np.argsort(corpus, kind="stable")
        for number, where in groups(corpus[order]):
            own = (2 * order[where][:, None] + np.arange(2)).reshape(-1)
            flat[spans((start + needs_bos)[own], kept[own])] = self._tokens[number][spans(source[own], kept[own])]
        cut = length < size + needs_bos
        flat[(start + length - 1)[cut]] = EOS
        pairs = np.searchsorted(placed.documents, start).reshape(-1, 2)
        return ContrastRead(flat.reshape(-1, self.length), placed.documents, pairs, placed.leaders)

    def tokens_of(self, corpus: int) -> np.ndarray:
        """The token stream of a corpus."""
        return self._tokens[corpus]

    def sentence_places(self, corpus: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """([2P] first token in its corpus, [2P] number of tokens, [2P] 1 where `<s>` must be prepended)."""
        source = np.empty((len(corpus), 2), np.int64)
        size = np.empty((len(corpus), 2), np.int64)
        order = np.argsort(corpus, kind="stable")
        for number, where in groups(corpus[order]):
            own = order[where]
            document = documents[own]
            source[own, 0] = self._document_starts[number][document]
            source[own, 1] = self._second_starts[number][document]
            size[own, 1] = self._document_starts[number][document + 1]
        size[:, 1] -= source[:, 1]
        size[:, 0] = source[:, 1] - source[:, 0]
        return source.reshape(-1), size.reshape(-1), np.tile(np.array([0, 1], np.int64), len(corpus))


@dataclass(frozen=True)
class Placed:
    """The placement of sentences in windows."""

    start: np.ndarray
    """[N] int64: first token of each in the flat batch."""
    windows: int
    """Number of windows used."""
    documents: np.ndarray
    """[D] int64: first token of each sentence and of each window's padding in the flat batch, ascending."""
    leaders: np.ndarray
    """[W] int64: index of the first of the N sentences in each window."""


def place(lengths: np.ndarray, capacity: int) -> Placed:
    """Pack sentences of `lengths` [N] into windows of `capacity` tokens by `first_fit`."""
    window, offset, windows = first_fit(lengths, capacity)
    start = window * capacity + offset
    leaders = np.empty(windows, np.int64)
    leaders[window[offset == 0]] = np.flatnonzero(offset == 0)
    return Placed(start, windows, with_padding(start, lengths, windows, capacity), leaders)


def first_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack items of `lengths` [N], each at most `capacity`, into bins: first fit, longest first, ties in given order.

    Returns ([N] bin, [N] offset in the bin, number of bins). Items of equal length are placed together, since first fit
    fills one bin after another with them: the loop is over the distinct lengths, not over items.
    """
    order = np.argsort(-lengths, kind="stable")
    bins, offsets = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    free = np.empty(0, np.int64)
    sizes, first = np.unique(-lengths[order], return_index=True)
    for size, items in zip((-sizes).tolist(), np.split(order, first[1:]), strict=True):
        room = int((free // size).sum())
        more = max(0, -(-(len(items) - room) // (capacity // size)))
        free = np.concatenate([free, np.full(more, capacity, np.int64)])
        fits = free // size
        taken = np.minimum(fits, np.maximum(0, len(items) - (np.cumsum(fits) - fits)))
        bins[items] = np.repeat(np.arange(len(free)), taken)
        offsets[items] = np.repeat(capacity - free, taken) + size * spans(np.zeros_like(taken), taken)
        free = free - taken * size
    return bins, offsets, len(free)
