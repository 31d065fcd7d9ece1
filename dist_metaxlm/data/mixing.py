"""Which language sample n takes: quotas that are exact for any prefix, without an index.

The samples of an objective are cut into blocks of B. Language l has the share q_l ~ count_l^alpha, an integer over
2**40. Within the first k blocks every language but the largest has floor(k B q_l) samples, the largest has the rest; so
the realised mix of k blocks is off by less than one sample a language (the largest: one a language). Within a block a
keyed permutation spreads the languages (so a language's ordinals are in order from block to block, but not within one).
A lookup costs O(languages), whatever n.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal

import numpy as np

from dist_metaxlm.data.permutation import hash_u64, permute

_SHARE_BITS = 40
_HALF = _SHARE_BITS // 2
_LEAST_BLOCK = 1024


def integer_shares(counts: Sequence[int], alpha: float) -> np.ndarray:
    """[languages] int64 that sum to 2**40: p ~ count^alpha (arXiv 1901.07291 section 3.1), at least 1 each.

    Decimal arithmetic, because libm's pow differs in its last bits from machine to machine and all ranks must agree.
    """
    context = Context(prec=40)
    weights = [context.exp(context.multiply(context.ln(Decimal(count)), Decimal(alpha))) for count in counts]
    total = context.create_decimal(0)
    for weight in weights:
        total = context.add(total, weight)
    scale = Decimal(1 << _SHARE_BITS)
    exact = [context.divide(context.multiply(weight, scale), total) for weight in weights]
    shares = np.array([max(1, int(share)) for share in exact], np.int64)
    largest = int(np.argmax(shares))
    shares[largest] += (1 << _SHARE_BITS) - int(shares.sum())
    return shares


class Mixture:
    """The sequence of languages (or language pairs) of one objective in one phase."""

    def __init__(self, counts: Sequence[int], schedule: Sequence[tuple[int, float]], key: int) -> None:
        """Mix languages of `counts` (all at least 1) with the alphas of `schedule`.

        `schedule` has (sample, alpha): alpha holds from the block border nearest to that sample on, the first one from
        the start. `key` decides the order within the blocks.
        """
        self.languages = len(counts)
        ordered = sorted(schedule, key=lambda point: point[0])
        shares = [integer_shares(counts, alpha) for _, alpha in ordered]
        self.block = _block_size(shares, self.languages)
        starts: list[int] = []
        kept: list[np.ndarray] = []
        for number, ((sample, _), share) in enumerate(zip(ordered, shares, strict=True)):
            border = 0 if number == 0 else (sample + self.block // 2) // self.block
            if starts and starts[-1] == border:
                starts.pop()
                kept.pop()
            starts.append(border)
            kept.append(share)
        self._starts = np.array(starts, np.int64)
        self._shares = np.stack(kept)
        self._largest = self._shares.argmax(axis=1)
        self._key = key
        self._before = np.zeros((len(starts), self.languages), np.int64)
        for number in range(1, len(starts)):
            blocks, segments = self._starts[number:number + 1], np.array([number - 1])
            self._before[number] = self._counts(blocks, segments)[0]

    def lookup(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([n] int64 language, [n] int64 ordinal): language of each sample and which one of that language it is.

        A language's ordinals 0, 1, 2, ... each occur once, in the order of the blocks.
        """
        samples = np.asarray(samples, np.int64)
        blocks, row = np.unique(samples // self.block, return_inverse=True)
        segments = np.searchsorted(self._starts, blocks, side="right") - 1
        before = self._counts(blocks, segments)
        ends = np.cumsum(self._counts(blocks + 1, segments) - before, axis=1)
        slot = samples % self.block
        if self.languages > 1:  # a language alone needs no spreading: its windows come strictly epoch after epoch
            slot = permute(slot, self.block, hash_u64(self._key, blocks)[row])
        # every row of `ends` rises to `block`, so with the rows laid end to end one search serves all samples
        offsets = np.arange(len(blocks)) * self.block
        found = np.searchsorted((ends + offsets[:, None]).ravel(), slot + offsets[row], side="right")
        language = found - row * self.languages
        starts = ends[row, language - 1]
        starts[language == 0] = 0
        return language, before[row, language] + slot - starts

    def shares(self, sample: int) -> np.ndarray:
        """[languages] float64: the asked distribution at that sample; sums to 1."""
        segment = int(np.searchsorted(self._starts, sample // self.block, side="right")) - 1
        return self._shares[segment] / float(1 << _SHARE_BITS)

    def _counts(self, blocks: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """[n, languages]: samples of each language in the first `blocks`, of which the last lies in `segments`."""
        samples = ((blocks - self._starts[segments]) * self.block)[:, None]
        shares = self._shares[segments]
        # floor(samples * shares / 2**40) in two halves: exact for up to 2**42 samples a segment
        high, low = shares >> _HALF, shares & ((1 << _HALF) - 1)
        counts = (samples * high + ((samples * low) >> _HALF)) >> _HALF
        rows = np.arange(len(blocks))
        largest = self._largest[segments]
        counts[rows, largest] = 0
        counts[rows, largest] = samples[:, 0] - counts.sum(axis=1)
        return counts + self._before[segments]


def _block_size(shares: list[np.ndarray], languages: int) -> int:
    """Power of two with B q >= languages for the largest: it bears all roundings and must never go backwards."""
    block = _LEAST_BLOCK
    while any(block * int(share.max()) < languages << _SHARE_BITS for share in shares):
        block *= 2
    return block
