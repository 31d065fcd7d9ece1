"""Interleaved timing of alternatives on a CPU, so that clock changes and other load affect them equally.

Times are CPU times of this process: on a shared machine wall time also measures other jobs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypedDict

WARM_UP = 2
"""Warm-up turns, not counted."""


class Spread(TypedDict):
    """Median, minimum and maximum over the turns."""

    median: float
    least: float
    greatest: float


def interleaved_timings(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each of `calls`, run in alternation."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-WARM_UP, repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> Spread:
    """Ratio of the times of `above` and `below` in the same turn."""
    return spread([numerator / denominator for numerator, denominator in zip(seconds[above], seconds[below], strict=True)])


def spread(values: list[float]) -> Spread:
    """Of at least one value."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
