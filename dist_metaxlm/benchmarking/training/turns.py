"""Timing of several ways to do the same work on a CPU, which take turns, so that clocks and neighbours hit them alike.

What counts is the processor time of this process: on a shared machine the clock on the wall measures the others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

WARM_UP = 2
"""Turns that are not counted."""


def interleaved_timings(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each of `calls`, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-WARM_UP, repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> dict[str, float]:
    """Time of one to that of another, of the same turn."""
    return spread([one / other for one, other in zip(seconds[above], seconds[below], strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    """Median and the ends."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}
