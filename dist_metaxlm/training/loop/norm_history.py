"""Running mean and standard deviation of gradient norms, which tell a spike."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

JUDGED_AFTER = 20
"""Norms that must be known before one is called a spike."""
SMALLEST_DEVIATION = 0.1
"""The standard deviation counts as at least this share of the mean: norms that hardly vary make no spike of a small step."""


@dataclass
class NormHistory:
    """Mean and variance with exponentially falling weights.

    Only additions, multiplications, divisions and square roots, which round alike on every machine: from equal norms all
    ranks come to equal decisions without a message.
    """

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def limit(self, sigma: float) -> float:
        """The largest norm that is no spike; infinite before `JUDGED_AFTER` norms."""
        if self.count < JUDGED_AFTER:
            return math.inf
        return self.mean + sigma * max(math.sqrt(self.variance), SMALLEST_DEVIATION * self.mean)

    def add(self, norm: float, steps: int, sigma: float) -> None:
        """Add a norm to a history over `steps` steps; a spike counts as the limit, so that a new level is learnt slowly."""
        norm = min(norm, self.limit(sigma))
        self.count += 1
        share = max(1.0 / self.count, 2.0 / (steps + 1))
        difference = norm - self.mean
        self.mean += share * difference
        self.variance = (1.0 - share) * (self.variance + share * difference * difference)

    def state(self) -> list[float]:
        """Values for the manifest of a checkpoint; `NormHistory(*state)` restores them exactly."""
        return list(astuple(self))
