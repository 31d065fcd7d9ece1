"""Selection and reading of a language's windows.

A language's tokens are a ring. In epoch e it is cut into W = tokens // L windows of L tokens from a keyed offset on, so
no document is always cut at the same place, and a keyed permutation orders the windows. A window that passes the end
of the ring continues at its start; that seam is a document boundary.

Shapes: W windows of the batch, L tokens a window, T = W * L, K languages (or language pairs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_metaxlm.data.packing.ordered import Ordered
from dist_metaxlm.data.packing.spans import groups, spans
from dist_metaxlm.data.sampling.permutation import hash_u64, key, permute
from dist_metaxlm.errors import UserError
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from dist_metaxlm.data.tokens.store import Corpus


@dataclass(frozen=True)
class Pieces:
    """Unbroken runs of tokens that make up windows: one a window, two for a window that passes the end of the ring."""

    corpus: np.ndarray
    """[n] int64: number of the corpus, ascending."""
    source: np.ndarray
    """[n] int64: first token in the corpus."""
    size: np.ndarray
    """[n] int64: tokens."""
    destination: np.ndarray
    """[n] int64: first token in the flat batch."""


class Windows(Ordered):
    """The windows of several corpora, by (corpus, ordinal)."""

    def __init__(self, corpora: Sequence[Corpus], names: Sequence[str], length: int, keys: tuple[str | int, ...]) -> None:
        """Cut `corpora`, called `names`, into windows of `length` tokens; `keys` name the random streams.

        Raises UserError naming all corpora that are shorter than one window.
        """
        super().__init__(corpora, names, length, keys)
        self._corpora = list(corpora)
        short = [
            f"{name} has {pluralize(len(tokens), 'token')}"
            for name, tokens in zip(names, self._tokens, strict=True)
            if len(tokens) < length
        ]
        if short:
            it = "it" if len(short) == 1 else "them"
            raise UserError(
                f"{', '.join(short)}, less than one window of sequence_length {length}; give {it} more text, set a smaller "
                f"sequence_length, or leave {it} out of languages"
            )
        self._rows = [np.lib.stride_tricks.sliding_window_view(tokens, length) for tokens in self._tokens]
        self._totals = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self._offset_keys = np.array([key(*keys, "offset", name) for name in names], np.uint64)

    def locate(self, corpus: np.ndarray, ordinal: np.ndarray) -> np.ndarray:
        """[W] int64: first token, in its corpus, of window number `ordinal` of `corpus` (both [W]), from 0, unbounded."""
        total = self._totals[corpus]
        count = total // self.length
        epoch = ordinal // count
        window = permute(ordinal % count, count, hash_u64(self._order_keys[corpus], epoch))
        offset = (hash_u64(self._offset_keys[corpus], epoch) % total.astype(np.uint64)).astype(np.int64)
        firsts: np.ndarray = (window * self.length + offset) % total
        return firsts

    def pieces(self, corpus: np.ndarray, starts: np.ndarray) -> Pieces:
        """Runs to copy for windows that begin at `starts` [W] of `corpus` [W]."""
        destination = np.arange(len(starts), dtype=np.int64) * self.length
        size = np.minimum(self._totals[corpus] - starts, self.length)
        over = np.flatnonzero(size < self.length)
        corpus = np.concatenate([corpus, corpus[over]])
        source = np.concatenate([starts, np.zeros(over.size, np.int64)])
        destination = np.concatenate([destination, destination[over] + size[over]])
        size = np.concatenate([size, self.length - size[over]])
        order = np.argsort(corpus, kind="stable")
        return Pieces(corpus[order], source[order], size[order], destination[order])

    def read(self, pieces: Pieces, windows: int) -> tuple[np.ndarray, np.ndarray]:
        """([W, L] int64 tokens, [D] int64 first token of each document in the flat batch, ascending).

        A document begins at each document start of the corpus, at each window start and at the ring's seam.
        """
        tokens = np.empty((windows, self.length), np.int64)
        flat = tokens.reshape(-1)
        whole = np.flatnonzero(pieces.size == self.length)
        rows, source = pieces.destination[whole] // self.length, pieces.source[whole]
        for number, where in groups(pieces.corpus[whole]):
            tokens[rows[where]] = self._rows[number][source[where]]
        for index in np.flatnonzero(pieces.size < self.length).tolist():
            begin, size, target = pieces.source[index], pieces.size[index], pieces.destination[index]
            flat[target : target + size] = self._tokens[pieces.corpus[index]][begin : begin + size]
        return tokens, self._documents(pieces, groups(pieces.corpus))

    def _documents(self, pieces: Pieces, runs: list[tuple[int, slice]]) -> np.ndarray:
        """[D] int64: first token of each document in the flat batch, ascending; `runs` are the pieces of each corpus."""
        bounds = np.stack([pieces.source + 1, pieces.source + pieces.size])
        positions = np.empty_like(bounds)
        for number, where in runs:
            positions[:, where] = self._corpora[number].document_starts.searchsorted(bounds[:, where])
        low, count = positions[0], positions[1] - positions[0]
        inside = spans(low, count)
        ends = [0, *np.cumsum(count).tolist()]
        for number, where in runs:
            part = slice(ends[where.start], ends[where.stop])
            inside[part] = self._corpora[number].document_starts[inside[part]]
        inside += np.repeat(pieces.destination - pieces.source, count)
        begins = np.zeros(int(pieces.size.sum()), np.bool_)
        begins[pieces.destination] = True
        begins[inside] = True
        return np.flatnonzero(begins)
