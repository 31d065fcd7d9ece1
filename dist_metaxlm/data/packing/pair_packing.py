"""Packing whole pairs into a fixed number of windows, for many chunks of pairs at once.

Longest first, each into the window with the most free space (Graham's LPT rule, 1969): windows fill evenly, so that
none lacks targets, and pairs that exceed the chunk's capacity are left over.

Shapes: N chunks, C pairs of a chunk, V windows of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dist_metaxlm.data.sampling.permutation import hash_u64

PAIRS = 384
"""Approximate pairs of a chunk: more pairs fill windows better and cost more time per window."""
_FILLS = (97, 96, 95, 94, 93, 92, 90, 88, 85, 80, 70, 60, 45)
"""Fill levels to try, in per cent of the windows' tokens, best first."""
_LEFT_OVER = 200
_SAMPLED = 8


@dataclass(frozen=True)
class ChunkPlan:
    """How a corpus of pairs is cut: chunk k holds places k * pairs // chunks to (k + 1) * pairs // chunks of its order.

    The order steps through the ring of pairs by a stride coprime to their number, so that each pair occurs once and each
    chunk is spread evenly over the corpus: neighbours have similar lengths, and a chunk of neighbours would be far too
    long or too short for its windows.
    """

    pairs: int
    chunks: int
    windows: int
    """V: windows of each chunk."""

    @property
    def widest(self) -> int:
        """Most pairs of a chunk."""
        return -(-self.pairs // self.chunks)

    def members(self, chunk: np.ndarray, stride_draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([N, widest] int64 pairs of each of the chunks `chunk` [N], [N, widest] bool: whether the entry is a pair).

        `stride_draw` [N] uint64 decides the order of the pairs.
        """
        strides = np.array([_stride(draw, self.pairs, self.widest) for draw in stride_draw.tolist()], np.int64)
        first = chunk * self.pairs // self.chunks
        count = (chunk + 1) * self.pairs // self.chunks - first
        start = np.array(
            [place * stride % self.pairs for place, stride in zip(first.tolist(), strides.tolist(), strict=True)], np.int64
        )  # Python integers: it may exceed 2**63
        column = np.arange(self.widest)
        return (start[:, None] + strides[:, None] * column) % self.pairs, column < count[:, None]


def plan_chunks(document_starts: np.ndarray, length: int) -> ChunkPlan:
    """The plan that fills windows of `length` tokens best while at most 1 in 200 tokens is left over.

    It is tried on a few chunks spread over the corpus, so the cost does not grow with the corpus. Pairs longer than a
    window never fit and do not count.
    """
    pairs = len(document_starts) - 1
    tokens = int(document_starts[-1])
    plan = ChunkPlan(pairs, 1, 1)
    for fill in _FILLS:
        windows = max(1, round(PAIRS * tokens * 100 / (pairs * length * fill)))
        chunks = -(-pairs // max(1, windows * length * fill * pairs // (100 * tokens)))
        plan = ChunkPlan(pairs, chunks, max(1, -(-tokens * 100 // (chunks * length * fill))))
        sampled = np.unique(np.arange(_SAMPLED) * plan.chunks // _SAMPLED)
        members, present = plan.members(sampled, hash_u64(0, sampled))
        sizes = np.where(present, document_starts[members + 1] - document_starts[members], 0)
        sizes[sizes > length] = 0
        left = sizes[pack(sizes, np.full(len(sampled), plan.windows), length) < 0].sum()
        if int(left) * _LEFT_OVER <= int(sizes.sum()):
            break
    return plan


@lru_cache(maxsize=4096)
def _stride(draw: int, pairs: int, count: int) -> int:
    """A number coprime to `pairs` whose first `count` multiples are well spaced on the ring: the best of a few draws."""
    draws = 1 + (hash_u64(draw, np.arange(16)) % np.uint64(max(1, pairs - 1))).astype(np.int64)
    places = draws[:, None] * np.arange(1, max(2, count)) % pairs
    gaps = np.minimum(places, pairs - places).min(axis=1)
    ordered = draws[np.argsort(-gaps, kind="stable")].tolist()
    return next((stride for stride in ordered if math.gcd(stride, pairs) == 1), 1)


def pack(sizes: np.ndarray, windows: np.ndarray, length: int) -> np.ndarray:
    """[N, C] int64: window of each item of `sizes` [N, C] (0: no item), -1 if left over; `windows` [N] of `length`.

    If a chunk has more tokens than its windows, its last pairs are left over first, whatever their sizes.
    """
    rows = np.arange(len(sizes))
    kept = np.where(sizes.cumsum(axis=1) <= (windows * length)[:, None], sizes, 0)
    order = np.argsort(-kept, axis=1, kind="stable")
    sorted_sizes = np.ascontiguousarray(np.take_along_axis(kept, order, axis=1).T)
    free = np.where(np.arange(windows.max(initial=1)) < windows[:, None], length, 0)
    flat, base = free.reshape(-1), rows * free.shape[1]
    chosen = np.full(sorted_sizes.shape, -1, np.int64)
    for number in range(int((kept > 0).sum(axis=1).max(initial=0))):
        size, best = sorted_sizes[number], free.argmax(axis=1)
        place = base + best
        fits = (size <= flat[place]) & (size > 0)
        flat[place] -= size * fits
        chosen[number] = np.where(fits, best, -1)
    result = np.empty_like(kept)
    np.put_along_axis(result, order, chosen.T, axis=1)
    return result
