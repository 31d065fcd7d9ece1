"""Targets of next-token prediction: an exact number of tokens in every window, chosen by its sample number alone.

The token at position i is predicted from the state at position i - 1 of the same document. Positions are drawn as masks are
(masking.py): every position has a hash of (key, sample number, position), and those with the smallest hashes are chosen.

Shapes: W windows, L tokens a window, D documents, M targets.
"""

from __future__ import annotations

import numpy as np

from dist_metaxlm.data.packing.masking import distinct_ranks, position_hashes, smallest_ranks
from dist_metaxlm.data.sampling.permutation import key as key_of


class NextTokens:
    """Chooses the tokens of windows that are predicted."""

    def __init__(self, special: np.ndarray, count: int, key: int) -> None:
        """Choose exactly `count` tokens a window, fewer only if fewer are eligible; `key` names the random stream.

        `special` [vocabulary] bool: ids that are never targets.
        """
        self._ordinary = ~np.asarray(special, np.bool_)
        self._count = count
        self._key = key_of(key, "choice")

    def choose(self, tokens: np.ndarray, samples: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets of windows `tokens` [W, L] of sample numbers `samples` [W], whose documents begin at the flat positions
        `documents` [D].

        Returns:
            [M] int64 flat positions whose states predict, ascending, and [M] int64 the tokens after them.
        """
        eligible = self._ordinary[tokens]
        eligible.reshape(-1)[documents] = False  # nothing of the same document comes before it
        ranks = distinct_ranks(position_hashes(self._key, samples, tokens.shape[1]), eligible)
        predicted = smallest_ranks(ranks, self._count)
        return predicted - 1, tokens.reshape(-1)[predicted]
