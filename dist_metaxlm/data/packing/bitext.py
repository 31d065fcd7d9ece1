"""Windows of translation pairs for TLM: whole pairs `<s> a </s> b </s>` in either order.

In each epoch the pairs of a corpus are put into a keyed order, cut into chunks of a few hundred, and each chunk is packed
into the same number of windows (pair_packing.py). A window is computed from its number by packing one chunk, without an
index. Within an epoch no pair is repeated, and all are used except the few (about 1 in 100) that do not fit into their
chunk. The omitted pairs and the pairs that share a window change with the epoch. Unfilled positions are `<pad>`, a
separate document at the window's end.

Shapes: W windows, L tokens a window, T = W * L, P pairs of the batch, N chunks of the batch, C pairs of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_metaxlm.data.packing.documents import with_padding
from dist_metaxlm.data.packing.ordered import OrderedPairs
from dist_metaxlm.data.packing.pair_packing import pack, plan_chunks
from dist_metaxlm.data.packing.spans import groups, spans
from dist_metaxlm.data.sampling.permutation import hash_u64, key, permute
from dist_metaxlm.data.special_tokens import PAD
from dist_metaxlm.errors import UserError

if TYPE_CHECKING:
    from dist_metaxlm.data.tokens.store import Corpus

_KEPT = 4
"""Packed chunks cached for each language pair: 9 kB each."""


@dataclass(frozen=True)
class Placed:
    """The pairs of some windows, window after window."""

    window: np.ndarray
    """[P] int64: window of the batch, ascending."""
    pair: np.ndarray
    """[P] int64: document of the window's corpus."""
    first: np.ndarray
    """[P] int64: first token in the flat batch."""
    second: np.ndarray
    """[P] int64: first token of the second side in the flat batch, as stored."""
    end: np.ndarray
    """[P] int64: end in the flat batch."""


@dataclass(frozen=True)
class BitextRead:
    """Windows of pairs, each pair in the order in which it is shown."""

    tokens: np.ndarray
    """[W, L] int64; unfilled positions are `<pad>`."""
    documents: np.ndarray
    """[D] int64: first token of each pair and of each window's padding in the flat batch, ascending."""


class BitextWindows(OrderedPairs):
    """The windows of several pairs' streams, by (language pair, ordinal)."""

    def __init__(self, corpora: Sequence[Corpus], names: Sequence[str], length: int, keys: tuple[str | int, ...]) -> None:
        """Pack the bitexts `corpora`, called `names`, into windows of `length`; `keys` name the random streams.

        Raises UserError naming all corpora that have no pairs or whose pairs are longer than a window.
        """
        super().__init__(corpora, names, length, keys)
        unfit = []
        for name, starts in zip(names, self._document_starts, strict=True):
            count = len(starts) - 1
            if count < 1:
                unfit.append(f"{name} has no translation pair")
            elif int(starts[-1]) > count * length:
                size = int(starts[-1]) // count
                unfit.append(f"{name} has pairs of {size} tokens on average, more than sequence_length {length}")
        if unfit:
            it = "it" if len(unfit) == 1 else "them"
            raise UserError(
                f"{', '.join(unfit)}; prepare the store again with bitext for {it} and max_pair_tokens up to {length}, or "
                f"leave {it} out of languages"
            )
        self._plans = [plan_chunks(starts, length) for starts in self._document_starts]
        self._per_chunk = np.array([plan.windows for plan in self._plans], np.int64)
        self.counts = np.array([plan.chunks * plan.windows for plan in self._plans], np.int64)
        """[K] int64: windows of an epoch."""
        self._swap_key = key(*keys, "swap")
        self._kept: dict[tuple[int, ...], np.ndarray] = {}

    def locate(self, corpus: np.ndarray, ordinal: np.ndarray) -> Placed:
        """The pairs in windows number `ordinal` (from 0, unbounded) of language pairs `corpus` (both [W])."""
        count, per_chunk = self.counts[corpus], self._per_chunk[corpus]
        epoch, window = ordinal // count, ordinal % count
        chunks, row = np.unique(np.stack([corpus, epoch, window // per_chunk], axis=1), axis=0, return_inverse=True)
        row = row.reshape(-1)
        pair, size, packed = self._packings(chunks)
        # the windows of a chunk are filled longest pair first: without this, long pairs would precede short ones
        draws = hash_u64(hash_u64(self._order_keys[chunks[:, 0]], chunks[:, 1]), chunks[:, 2])
        slot = permute(window % per_chunk, per_chunk, draws[row])
        window, column = np.nonzero(packed[row] == slot[:, None])
        taken, pair = size[row[window], column], pair[row[window], column]
        ends = np.cumsum(taken)
        before = np.concatenate([[0], ends])[np.searchsorted(window, window)]  # tokens of the windows before this one
        first = window * self.length + ends - taken - before
        return Placed(window, pair, first, first + self._first_sides(corpus[window], pair), first + taken)

    def read(self, corpus: np.ndarray, ordinal: np.ndarray, samples: np.ndarray) -> BitextRead:
        """Windows number `ordinal` of language pairs `corpus`, shown as sample numbers `samples` (all [W])."""
        placed = self.locate(corpus, ordinal)
        flat = np.full(len(corpus) * self.length, PAD, np.int64)
        number = corpus[placed.window]
        order = np.argsort(number, kind="stable")
        size = placed.end - placed.first
        for known, where in groups(number[order]):
            own = order[where]
            source = self._document_starts[known][placed.pair[own]]
            flat[spans(placed.first[own], size[own])] = self._tokens[known][spans(source, size[own])]
        draws = hash_u64(hash_u64(self._swap_key, samples)[placed.window], placed.first % self.length)
        chosen = (draws >> np.uint64(63)).astype(np.bool_)
        swap_sides(flat, placed.first[chosen], placed.second[chosen], placed.end[chosen])
        documents = with_padding(placed.first, size, len(corpus), self.length)
        return BitextRead(flat.reshape(-1, self.length), documents)

    def origin(self, corpus: np.ndarray, ordinal: np.ndarray) -> list[tuple[int, int]]:
        """[(flat position, first token in the corpus)] of the pairs of window `ordinal` of `corpus` (both [1])."""
        placed = self.locate(corpus, ordinal)
        starts = self._document_starts[corpus[0]][placed.pair]
        return list(zip(placed.first.tolist(), starts.tolist(), strict=True))

    def _packings(self, chunks: np.ndarray) -> np.ndarray:
        """[3, N, C] int64 pair, tokens, window (-1: in none) of chunks [N, 3] (corpus, epoch, number), by corpus.

        The latest ones are cached: the next windows of a language pair mostly come from the same chunk.
        """
        keys = [tuple(chunk) for chunk in chunks.tolist()]
        packings = {chunk: self._kept.get(chunk) for chunk in keys}
        missing = chunks[[packings[chunk] is None for chunk in keys]]
        if len(missing):
            corpus, epoch, number = missing.T
            pair, size = self._members(corpus, number, hash_u64(self._order_keys[corpus], epoch))
            made = np.stack([pair, size, pack(size, self._per_chunk[corpus], self.length)], axis=1)
            for chunk, packing in zip(missing.tolist(), made, strict=True):
                packings[tuple(chunk)] = self._kept[tuple(chunk)] = packing[:, : self._plans[chunk[0]].widest].copy()
            for chunk in list(self._kept)[: -_KEPT * len(self._plans)]:
                self._kept.pop(chunk, None)
        result = np.zeros((3, len(keys), max(self._plans[chunk[0]].widest for chunk in keys)), np.int64)
        result[2] = -1
        for row, chunk in enumerate(keys):
            packing = packings[chunk]
            assert packing is not None
            result[:, row, : packing.shape[1]] = packing
        return result

    def _members(self, corpus: np.ndarray, chunk: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([N, C] int64 pairs of the chunks, [N, C] int64 tokens; 0: no pair, or longer than a window); by corpus."""
        widest = max(self._plans[number].widest for number, _ in groups(corpus))
        pair, size = np.zeros((2, len(corpus), widest), np.int64)
        for number, rows in groups(corpus):
            plan, starts = self._plans[number], self._document_starts[number]
            members, present = plan.members(chunk[rows], draws[rows])
            pair[rows, : plan.widest] = members
            size[rows, : plan.widest] = np.where(present, starts[members + 1] - starts[members], 0)
        size[size > self.length] = 0
        return pair, size

    def _first_sides(self, corpus: np.ndarray, pair: np.ndarray) -> np.ndarray:
        """[P] int64: tokens of the first side of each pair."""
        result = np.empty_like(pair)
        order = np.argsort(corpus, kind="stable")
        for number, where in groups(corpus[order]):
            own = order[where]
            result[own] = self._second_starts[number][pair[own]] - self._document_starts[number][pair[own]]
        return result


def swap_sides(flat: np.ndarray, first: np.ndarray, second: np.ndarray, end: np.ndarray) -> None:
    """Turn `<s> a </s> b </s>` into `<s> b </s> a </s>` in place, at `first`, `second`, `end` [P] of `flat`."""
    body = first + 1
    length = end - body
    target = spans(body, length)
    # everything after <s> rotates by the length of the first side
    turned = (spans(np.zeros_like(length), length) + np.repeat(second - body, length)) % np.repeat(length, length)
    flat[target] = flat[np.repeat(body, length) + turned]
