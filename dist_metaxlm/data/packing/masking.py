"""Masks: an exact number of targets in every window, chosen by the window's sample number alone.

Every position of a window gets a hash of (key, sample number, position); the positions with the smallest hashes are the
targets. So a window's masks do not depend on the rest of the batch, and the count is exact. Of the targets 80 % are
replaced by `<mask>`, 10 % by a random ordinary token and 10 % stay (BERT, arXiv 1810.04805 section 3.1).

Shapes: W windows, L tokens a window, T = W * L, M targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dist_metaxlm.data.sampling.permutation import hash_u64
from dist_metaxlm.data.sampling.permutation import key as key_of

if TYPE_CHECKING:
    from dist_metaxlm.data.tokenizer import Tokenizer

LONGEST_WORD = 10
"""Pieces; a longer run without a word-begin piece is script without spaces, where each piece counts as a word."""
_MASKED = np.uint64(round(0.8 * 2**32))
_REPLACED = np.uint64(round(0.9 * 2**32))
_LOW_32 = np.uint64(2**32 - 1)
_NEVER = np.uint64(1 << 63)


@dataclass(frozen=True)
class Masked:
    """The model's input and its targets."""

    inputs: np.ndarray
    """[W, L] int64: tokens with the masks applied."""
    targets: np.ndarray
    """[M] int64: flat positions, ascending."""
    target_tokens: np.ndarray
    """[M] int64: the original tokens at these positions."""


class Masker:
    """Chooses and replaces the targets of windows."""

    def __init__(self, tokenizer: Tokenizer, count: int, whole_words: bool, key: int) -> None:
        """Mask exactly `count` tokens a window, fewer only if fewer are eligible; `key` names the random stream.

        With `whole_words`, whole words are selected in the order of their hashes until the count is reached; if the last
        one does not fit, only its first pieces are selected. A word never crosses a document or a special token.
        """
        self._count = count
        self._whole_words = whole_words
        self._ordinary = ~np.asarray(tokenizer.special, np.bool_)
        self._ordinary_ids = np.flatnonzero(self._ordinary)
        self._word_begin = np.asarray(tokenizer.word_begin, np.bool_)
        self._mask_id = tokenizer.mask_id
        self._choice_key = key_of(key, "choice")
        self._action_key = key_of(key, "action")

    def mask(self, tokens: np.ndarray, samples: np.ndarray, documents: np.ndarray, share: float | None = None) -> Masked:
        """Mask windows `tokens` [W, L] of sample numbers `samples` [W].

        `documents` [D] are the flat positions where documents begin. Special tokens, including `<pad>`, are never targets.
        With `share`, a window has round(share * its eligible tokens) targets instead of the fixed count.
        """
        eligible = self._ordinary[tokens]
        ranks = self._ranks(tokens, samples, documents, eligible)
        if share is None:
            targets = smallest_ranks(ranks, self._count)
        else:
            counts = np.rint(share * eligible.sum(axis=1)).astype(np.int64)
            last = np.sort(ranks, axis=1)[np.arange(len(ranks)), np.maximum(counts, 1) - 1]
            last[counts == 0] = 0  # no eligible rank: position 0 is `<s>`
            targets = _up_to(ranks, last)
        target_tokens = tokens.reshape(-1)[targets]
        inputs = tokens.copy()
        inputs.reshape(-1)[targets] = self._replacements(targets, target_tokens, samples, tokens.shape[1])
        return Masked(inputs, targets, target_tokens)

    def _ranks(self, tokens: np.ndarray, samples: np.ndarray, documents: np.ndarray, eligible: np.ndarray) -> np.ndarray:
        """[W, L] uint64, distinct in a row: the order of selection; the top bit marks ineligible positions."""
        ranks = position_hashes(self._choice_key, samples, tokens.shape[1])
        if self._whole_words:
            ranks = ranks.reshape(-1)[self._word_starts(tokens, documents, eligible)].reshape(ranks.shape)
        return distinct_ranks(ranks, eligible)

    def _word_starts(self, tokens: np.ndarray, documents: np.ndarray, eligible: np.ndarray) -> np.ndarray:
        """[T] int64: flat position of the first piece of each token's word."""
        begin = (self._word_begin[tokens] | ~eligible).reshape(-1)
        begin[1:] |= ~eligible.reshape(-1)[:-1]
        begin[documents] = True
        starts = np.flatnonzero(begin)
        lengths = np.diff(starts, append=begin.size)
        word = np.repeat(starts, lengths)
        return np.where(np.repeat(lengths > LONGEST_WORD, lengths), np.arange(begin.size), word)

    def _replacements(self, targets: np.ndarray, target_tokens: np.ndarray, samples: np.ndarray, length: int) -> np.ndarray:
        """[M] int64: what the model sees at the targets. One hash serves both draws, 32 bits each."""
        streams = hash_u64(self._action_key, samples)
        draws = hash_u64(streams[targets // length], targets % length)
        action = draws >> np.uint64(32)
        drawn = ((draws & _LOW_32) * np.uint64(len(self._ordinary_ids))) >> np.uint64(32)
        seen = np.where(action < _REPLACED, self._ordinary_ids[drawn.astype(np.int64)], target_tokens)
        seen[action < _MASKED] = self._mask_id
        return seen


def position_hashes(key: int, samples: np.ndarray, length: int) -> np.ndarray:
    """[W, L] uint64: a hash of (key, sample number, position) for each of `length` positions of `samples` [W]."""
    return hash_u64(hash_u64(key, samples)[:, None], np.arange(length, dtype=np.uint64))


def distinct_ranks(hashes: np.ndarray, eligible: np.ndarray) -> np.ndarray:
    """`hashes` [W, L] in place, made distinct in a row; the top bit marks positions that are not `eligible` [W, L]."""
    length = hashes.shape[1]
    low = np.uint64((1 << (length - 1).bit_length()) - 1)
    # the position in the low bits makes ranks unique, so the choice does not depend on how a sort breaks ties
    hashes &= ~(low | _NEVER)
    hashes |= np.arange(length, dtype=np.uint64)
    hashes[~eligible] |= _NEVER
    return hashes


def smallest_ranks(ranks: np.ndarray, count: int) -> np.ndarray:
    """[M] int64, ascending: flat positions of the `count` smallest ranks of each row, fewer if fewer are eligible."""
    return _up_to(ranks, np.partition(ranks, count - 1, axis=1)[:, count - 1])


def _up_to(ranks: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Flat positions of eligible ranks that are at most `last` [W]."""
    return np.flatnonzero(ranks <= np.minimum(last, _NEVER - np.uint64(1))[:, None])
