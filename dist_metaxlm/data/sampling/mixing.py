"""The language of sample n: quotas that are exact for any prefix, without an index.

The samples of an objective are cut into blocks of B. Source s (a language, or one of its sources) has the share q_s, an
integer over 2**40, constant over segments of blocks (shares.py). Of the first k blocks of a segment every source but the
largest has floor(k B q_s) samples, the largest has the rest; so the actual mix of k blocks is off by less than one
sample a source and segment (the largest: one a source). Within a block a keyed permutation spreads the sources (so a
source's ordinals ascend from block to block, but not within one). A lookup costs O(sources), whatever n.
"""

from __future__ import annotations

import numpy as np

from dist_metaxlm.data.sampling.permutation import hash_u64, permute
from dist_metaxlm.data.sampling.shares import SHARE_BITS, Mix, SharePlan, split_shares

_HALF = SHARE_BITS // 2
_LEAST_BLOCK = 1024


class Mixture:
    """The sequence of languages (or language pairs) of one objective in one phase, and of the sources within them."""

    def __init__(self, mix: Mix, key: int) -> None:
        """Follow `mix`; `key` decides the order within the blocks."""
        self.owner = np.arange(len(mix.counts))
        """[sources] int64: language of each source. Without `parts` every language is its own source."""
        if mix.parts is not None:
            self.owner = np.repeat(self.owner, [len(weights) for weights in mix.parts])
        self.languages, self._sources = len(mix.counts), len(self.owner)
        self.block, self._starts, self._shares = _segments(mix, self._sources)
        self._largest = self._shares.argmax(axis=1)
        self._key = key
        self._before = np.zeros((len(self._starts), self._sources), np.int64)
        for number in range(1, len(self._starts)):
            blocks, segments = self._starts[number : number + 1], np.array([number - 1])
            self._before[number] = self._counts(blocks, segments)[0]

    def lookup(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([n] int64 source, [n] int64 ordinal): source of each sample and which one of that source it is.

        A source's ordinals 0, 1, 2, ... each occur once, in the order of the blocks.
        """
        samples = np.asarray(samples, np.int64)
        blocks, row = np.unique(samples // self.block, return_inverse=True)
        segments = np.searchsorted(self._starts, blocks, side="right") - 1
        before = self._counts(blocks, segments)
        ends = np.cumsum(self._counts(blocks + 1, segments) - before, axis=1)
        slot = samples % self.block
        if self._sources > 1:  # a single source needs no spreading: its windows come strictly epoch after epoch
            slot = permute(slot, self.block, hash_u64(self._key, blocks)[row])
        # every row of `ends` rises to `block`, so with the rows laid end to end one search serves all samples
        offsets = np.arange(len(blocks)) * self.block
        cell = np.searchsorted((ends + offsets[:, None]).ravel(), slot + offsets[row], side="right")
        source = cell - row * self._sources
        starts = ends[row, source - 1]
        starts[source == 0] = 0
        return source, before[row, source] + slot - starts

    def shares(self, sample: int) -> np.ndarray:
        """[languages] float64: the target distribution at that sample; sums to 1."""
        segment = int(np.searchsorted(self._starts, sample // self.block, side="right")) - 1
        return self._by_language(self._shares[segment].astype(np.float64))

    def shares_so_far(self, samples: int) -> np.ndarray:
        """[languages] float64: the target distribution, averaged over the first `samples`; sums to 1."""
        if samples < 1:
            return self.shares(0)
        borders = np.minimum(np.append(self._starts * self.block, samples), samples)
        return self._by_language((self._shares * (np.diff(borders) / samples)[:, None]).sum(axis=0))

    def _by_language(self, shares: np.ndarray) -> np.ndarray:
        return np.bincount(self.owner, weights=shares, minlength=self.languages) / float(1 << SHARE_BITS)

    def _counts(self, blocks: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """[n, sources]: samples of each source in the first `blocks`; the last of these is in `segments`."""
        samples = ((blocks - self._starts[segments]) * self.block)[:, None]
        shares = self._shares[segments]
        # floor(samples * shares / 2**40) in two halves: exact for up to 2**42 samples a segment
        high, low = shares >> _HALF, shares & ((1 << _HALF) - 1)
        counts = (samples * high + ((samples * low) >> _HALF)) >> _HALF
        rows = np.arange(len(blocks))
        largest = self._largest[segments]
        counts[rows, largest] = 0
        counts[rows, largest] = samples[:, 0] - counts.sum(axis=1)
        totals: np.ndarray = counts + self._before[segments]
        return totals


def _segments(mix: Mix, sources: int) -> tuple[int, np.ndarray, np.ndarray]:
    """(block, [S] first blocks, [S, sources] shares) with B q >= sources for the largest source of each segment.

    The largest source absorbs all rounding errors and its count must never decrease. Blocks are powers of two.
    """
    plan, block = SharePlan(mix), _LEAST_BLOCK
    while True:
        starts, shares = plan.segments(block)
        if mix.parts is not None:
            shares = split_shares(shares, mix.parts)
        needed = -(-(sources << SHARE_BITS) // int(shares.max(axis=1).min()))
        if needed <= block:
            return block, starts, shares
        block = 1 << (needed - 1).bit_length()
