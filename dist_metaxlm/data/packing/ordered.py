"""Several corpora, each read in its own order: the common base of text, pair and contrast windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dist_metaxlm.data.sampling.permutation import key

if TYPE_CHECKING:
    from dist_metaxlm.data.tokens.store import Corpus


class Ordered:
    """Corpora, called `names`, for windows of `length` tokens; `keys` name the random streams."""

    def __init__(self, corpora: Sequence[Corpus], names: Sequence[str], length: int, keys: tuple[str | int, ...]) -> None:
        self.length = length
        self._tokens = [np.asarray(corpus.tokens) for corpus in corpora]
        self._order_keys = np.array([key(*keys, "order", name) for name in names], np.uint64)


class OrderedPairs(Ordered):
    """The same for bitexts, with the start positions of pairs and of their second sides."""

    def __init__(self, corpora: Sequence[Corpus], names: Sequence[str], length: int, keys: tuple[str | int, ...]) -> None:
        super().__init__(corpora, names, length, keys)
        self._document_starts = [np.asarray(corpus.document_starts) for corpus in corpora]
        self._second_starts = [np.asarray(corpus.second_starts) for corpus in corpora]
