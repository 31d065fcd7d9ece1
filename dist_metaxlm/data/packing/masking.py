"""Masks: an exact number of targets in every window, chosen by the window's sample number alone.

Every position of a window gets a hash of (key, sample number, position); the positions with the smallest hashes are the
targets. So a window's masks do not depend on the rest of the batch, and the count is exact. Of the targets 80 % are
replaced by `<mask>`, 10 % by a random ordinary token and 10 % stay (BERT, arXiv 1810.04805 section 3.1), unless a rule has
other shares. With spans (SpanBERT, arXiv 1907.10529 section 3.1) a span of a drawn length begins at every position, and a
position has the smallest hash of the spans that cover it; all of a span is replaced in the same way.

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
_LOW_32 = np.uint64(2**32 - 1)
_NEVER = np.uint64(1 << 63)


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """How targets are chosen and what the model sees in their place; see `MaskedObjective` of the recipe."""

    masked_share: float = 0.8
    random_share: float = 0.1
    span_p: float | None = None
    span_max: int = 10

    def lengths(self) -> np.ndarray:
        """[span_max - 1] uint64: of 2**63, the probabilities that a span has at most 1, 2, ... tokens; cut and scaled."""
        assert self.span_p is not None
        shares, left = [], 1.0
        for _ in range(self.span_max):
            shares.append(left * self.span_p)
            left *= 1.0 - self.span_p
        bounds = np.cumsum(shares)[:-1] / sum(shares)
        return np.array([int(bound * 2**63) for bound in bounds.tolist()], np.uint64)


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

    def __init__(self, tokenizer: Tokenizer, count: int, whole_words: bool, key: int, rule: MaskRule = MaskRule()) -> None:
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
        self._masked = np.uint64(round(rule.masked_share * 2**32))
        self._replaced = np.uint64(min(2**32, round((rule.masked_share + rule.random_share) * 2**32)))
        self._lengths = None if rule.span_p is None else rule.lengths()
        self._length_key = key_of(key, "length")
        self._choice_key = key_of(key, "choice")
        self._action_key = key_of(key, "action")

    def mask(self, tokens: np.ndarray, samples: np.ndarray, documents: np.ndarray, share: float | None = None) -> Masked:
        """Mask windows `tokens` [W, L] of sample numbers `samples` [W].

        `documents` [D] are the flat positions where documents begin. Special tokens, including `<pad>`, are never targets.
        With `share`, a window has round(share * its eligible tokens) targets instead of the fixed count.
        """
        eligible = self._ordinary[tokens]
        ranks, owners = self._ranks(tokens, samples, documents, eligible)
        if share is None:
            targets = smallest_ranks(ranks, self._count)
        else:
            counts = np.rint(share * eligible.sum(axis=1)).astype(np.int64)
            last = np.sort(ranks, axis=1)[np.arange(len(ranks)), np.maximum(counts, 1) - 1]
            last[counts == 0] = 0  # no eligible rank: position 0 is `<s>`
            targets = _up_to(ranks, last)
        target_tokens = tokens.reshape(-1)[targets]
        inputs = tokens.copy()
        inputs.reshape(-1)[targets] = self._replacements(targets, target_tokens, samples, tokens.shape[1], owners)
        return Masked(inputs, targets, target_tokens)

    def _ranks(
        self, tokens: np.ndarray, samples: np.ndarray, documents: np.ndarray, eligible: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """([W, L] uint64, distinct in a row: the order of selection; the top bit marks ineligible positions,
        [T] int64 with spans: flat position of the beginning of each position's span)."""
        ranks, owners = position_hashes(self._choice_key, samples, tokens.shape[1]), None
        if self._lengths is not None:
            ranks, owners = self._spans(ranks, samples, documents, eligible)
        if self._whole_words:
            starts = self._word_starts(tokens, documents, eligible)
            ranks = ranks.reshape(-1)[starts].reshape(ranks.shape)
            owners = None if owners is None else owners[starts]
        return distinct_ranks(ranks, eligible), owners

    def _spans(
        self, hashes: np.ndarray, samples: np.ndarray, documents: np.ndarray, eligible: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """([W, L] uint64: the smallest hash of the spans over each position, [T] int64: where this span begins).

        A span ends before a special token and at the end of its document.
        """
        assert self._lengths is not None
        length = hashes.shape[1]
        draws = position_hashes(self._length_key, samples, length) >> np.uint64(1)
        sizes = 1 + np.searchsorted(self._lengths, draws, side="right").reshape(-1)
        begins = ~eligible.reshape(-1)
        begins[1:] |= begins[:-1].copy()
        begins[documents] = True
        begins[::length] = True
        run = np.cumsum(begins)
        hashes = hashes.reshape(-1)
        best, owners = hashes.copy(), np.arange(hashes.size)
        for offset in range(1, len(self._lengths) + 1):
            covered = (sizes[:-offset] > offset) & (run[:-offset] == run[offset:]) & (hashes[:-offset] < best[offset:])
            places = np.flatnonzero(covered)
            best[places + offset] = hashes[places]
            owners[places + offset] = places
        return best.reshape(-1, length), owners

    def _word_starts(self, tokens: np.ndarray, documents: np.ndarray, eligible: np.ndarray) -> np.ndarray:
        """[T] int64: flat position of the first piece of each token's word."""
        begin = (self._word_begin[tokens] | ~eligible).reshape(-1)
        begin[1:] |= ~eligible.reshape(-1)[:-1]
        begin[documents] = True
        starts = np.flatnonzero(begin)
        lengths = np.diff(starts, append=begin.size)
        word = np.repeat(starts, lengths)
        return np.where(np.repeat(lengths > LONGEST_WORD, lengths), np.arange(begin.size), word)

    def _replacements(
        self, targets: np.ndarray, target_tokens: np.ndarray, samples: np.ndarray, length: int, owners: np.ndarray | None
    ) -> np.ndarray:
        """[M] int64: what the model sees at the targets. One hash serves both draws, 32 bits each; `owners`: [T] flat
        positions whose draw decides how each position is replaced."""
        streams = hash_u64(self._action_key, samples)
        draws = hash_u64(streams[targets // length], targets % length)
        decisive = draws if owners is None else hash_u64(streams[targets // length], owners[targets] % length)
        action = decisive >> np.uint64(32)
        drawn = ((draws & _LOW_32) * np.uint64(len(self._ordinary_ids))) >> np.uint64(32)
        seen = np.where(action < self._replaced, self._ordinary_ids[drawn.astype(np.int64)], target_tokens)
        seen[action < self._masked] = self._mask_id
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
