"""The shares that a recipe asks for, as integers: powers of the counts, unlocks, and caps on repetitions.

A phase is cut into segments at block borders; within one the shares are constant. A cap holds over the whole phase, so
it needs the phase's length: a language that would be repeated too often gets a smaller share from the start instead
of running out (as in UniMax, arXiv 2304.09151), and the difference is distributed over the others by their shares.

Shapes: S segments, K languages (or language pairs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal

import numpy as np

SHARE_BITS = 40
WHOLE = 1 << SHARE_BITS
_FINE = 1 << 20
_CONTEXT = Context(prec=40)


@dataclass(frozen=True)
class Mix:
    """The target mix of one objective. Sequences are indexed by language; sample numbers count from the phase's start."""

    counts: Sequence[int]
    """n_l, tokens or pairs, at least 1 each."""
    schedule: Sequence[tuple[int, float]]
    """(sample, alpha): alpha applies from that sample on, the first one from the start."""
    unlocks: Sequence[int] | None = None
    """First sample at which a language may be used; at least one of them is 0."""
    limits: Sequence[int] | None = None
    """Most samples of a language in the whole phase; needs `samples`."""
    samples: int = 0
    """Samples of the phase."""
    parts: Sequence[Sequence[int]] | None = None
    """Weights of a language's sources, which share its samples in these ratios."""
    fixed: Mapping[int, float] | None = None
    """Index of a language -> its fixed share, independent of alpha; the others divide the rest. Their sum is less than 1."""

    def longest(self) -> int | None:
        """Samples after which the limits of the languages unlocked until then are used up; None: they suffice."""
        if self.limits is None:
            return None
        unlocks = self.unlocks or [0] * len(self.counts)
        points = sorted({0, *unlocks})
        for point, following in zip(points, [*points[1:], self.samples], strict=True):
            room = sum(limit for limit, unlock in zip(self.limits, unlocks, strict=True) if unlock <= point)
            if room < min(following, self.samples):
                return room
        return None


def integer_shares(counts: Sequence[int], alpha: float, available: Sequence[bool] | None = None) -> np.ndarray:
    """[K] int64 that sum to 2**40: p ~ count^alpha (arXiv 1901.07291 section 3.1), at least 1 each, 0 if not available.

    Decimal arithmetic, because libm's pow differs in its last bits between machines and all ranks must get the same result.
    """
    usable = range(len(counts)) if available is None else [n for n, open_now in enumerate(available) if open_now]
    weights = [_CONTEXT.exp(_CONTEXT.multiply(_CONTEXT.ln(Decimal(counts[n])), Decimal(alpha))) for n in usable]
    total = _CONTEXT.create_decimal(0)
    for weight in weights:
        total = _CONTEXT.add(total, weight)
    shares = np.zeros(len(counts), np.int64)
    for number, weight in zip(usable, weights, strict=True):
        shares[number] = max(1, int(_CONTEXT.divide(_CONTEXT.multiply(weight, Decimal(WHOLE)), total)))
    shares[int(np.argmax(shares))] += WHOLE - int(shares.sum())
    return shares


class SharePlan:
    """The segments of a mix for any block size; values that do not depend on it are computed once."""

    def __init__(self, mix: Mix) -> None:
        self._mix = mix
        self._schedule = sorted(mix.schedule, key=lambda point: point[0])
        self._unlocks = np.array(mix.unlocks if mix.unlocks is not None else [0] * len(mix.counts), np.int64)
        self._known: dict[tuple[float, bytes], np.ndarray] = {}

    def segments(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """([S] int64 first block, [S, K] int64 shares that sum to 2**40), with borders at the nearest blocks."""
        alphas = {0: self._schedule[0][1]}
        for number, (sample, alpha) in enumerate(self._schedule):
            alphas[(sample + block // 2) // block if number else 0] = alpha
        unlocks = (self._unlocks + block // 2) // block
        starts = sorted({*alphas, *unlocks.tolist()})
        rows, alpha = [], alphas[0]
        for start in starts:
            alpha = alphas.get(start, alpha)
            rows.append(self._asked(alpha, unlocks <= start))
        shares = np.stack(rows)
        if self._mix.limits is not None:
            total = -(-self._mix.samples // block)
            lengths = [
                max(0, min(end, total) - start) * block
                for start, end in zip(starts, [*starts[1:], max(total, starts[-1])], strict=True)
            ]
            shares = _capped(shares, lengths, self._mix.limits)
        return np.array(starts, np.int64), shares

    def _asked(self, alpha: float, available: np.ndarray) -> np.ndarray:
        key = (alpha, available.tobytes())
        if key not in self._known:
            self._known[key] = self._with_fixed(alpha, available)
        return self._known[key]

    def _with_fixed(self, alpha: float, available: np.ndarray) -> np.ndarray:
        fixed = {
            number: int(_CONTEXT.multiply(Decimal(str(share)), Decimal(WHOLE)))
            for number, share in (self._mix.fixed or {}).items()
            if available[number]
        }
        free = available.copy()
        free[list(fixed)] = False
        if not fixed:
            return integer_shares(self._mix.counts, alpha, available.tolist())
        # Python integers: the product of two shares does not fit into 64 bits
        rest, shares = WHOLE - sum(fixed.values()), [0] * len(free)
        if free.any():
            shares = [
                max(1, share * rest // WHOLE) if share else 0
                for share in integer_shares(self._mix.counts, alpha, free.tolist()).tolist()
            ]
        else:  # until other languages unlock
            fixed = {number: share * WHOLE // (WHOLE - rest) for number, share in fixed.items()}
        for number, share in fixed.items():
            shares[number] = share
        shares[shares.index(max(shares))] += WHOLE - sum(shares)
        return np.array(shares, np.int64)


def split_shares(shares: np.ndarray, parts: Sequence[Sequence[int]]) -> np.ndarray:
    """[S, all parts] int64: the shares [S, K] of languages, spread over their sources by weight; sums are kept."""
    columns = []
    for column, weights in zip(shares.T.tolist(), parts, strict=True):
        total, largest = sum(weights), max(range(len(weights)), key=lambda n: weights[n])
        split = np.array([[share * weight // total for weight in weights] for share in column], np.int64)
        split[:, largest] += np.array(column, np.int64) - split.sum(axis=1)
        columns.append(split)
    return np.concatenate(columns, axis=1)


def _capped(shares: np.ndarray, lengths: Sequence[int], limits: Sequence[int]) -> np.ndarray:
    """[S, K] shares under which no language has more than its limit in segments of `lengths` samples together.

    Segment by segment: a language may use the part of its remaining samples that its shares in this and the later
    segments assign to this segment, and more only if the unlocked languages cannot fill the segment otherwise.
    """
    left = [int(limit) * _FINE for limit in limits]
    lengths = [length * _FINE for length in lengths]
    weights = shares.tolist()
    result = shares.copy()
    for number, length in enumerate(lengths):
        if not length:
            continue
        asked = weights[number]
        pace = []
        for language, share in enumerate(asked):
            ahead = sum(weights[later][language] * lengths[later] for later in range(number, len(lengths)))
            pace.append(left[language] * share * length // ahead if share else 0)
        taken, capped = _fill(length, asked, pace)
        if capped and sum(taken) < length - len(asked):
            more, _ = _fill(length - sum(taken), asked, [rest - used for rest, used in zip(left, taken, strict=True)])
            taken = [before + added for before, added in zip(taken, more, strict=True)]
        if capped:
            row = np.array([count * WHOLE // length for count in taken], np.int64)
            row[int(np.argmax(row))] += WHOLE - int(row.sum())
            result[number] = row
        left = [max(0, rest - share * length // WHOLE) for rest, share in zip(left, result[number].tolist(), strict=True)]
    return result


def _fill(length: int, weights: Sequence[int], limits: Sequence[int]) -> tuple[list[int], bool]:
    """([K] samples by weight, none above its limit, that sum to `length` up to rounding; whether a limit was reached)."""
    free = [number for number, weight in enumerate(weights) if weight]
    taken = [0] * len(weights)
    rest, bound = length, False
    while free:
        total = sum(weights[number] for number in free)
        full = {number for number in free if limits[number] * total < rest * weights[number]}
        if not full:
            for number in free:
                taken[number] = rest * weights[number] // total
            break
        bound = True
        for number in full:
            taken[number] = limits[number]
        rest -= sum(limits[number] for number in full)
        free = [number for number in free if number not in full]
    return taken, bound
