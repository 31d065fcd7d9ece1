"""Lines of progress with the time left, at most one every half a minute."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL = 30.0
"""Seconds between two lines."""


class Progress:
    """Reports units of work that are done, such as steps or languages, if they take longer than INTERVAL."""

    def __init__(
        self, log: Callable[[str], None], what: str, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            log: receives a line.
            what: begins a line.
            total: all units.
            done: units that an earlier process has done; they do not count in the estimate.
            clock: seconds.
        """
        self._log, self._what, self._total, self._first, self._clock = log, what, total, done, clock
        self._began = self._last = clock()

    def reach(self, done: int, unit: str) -> None:
        """`done` units are finished now; unit: their plural."""
        now = self._clock()
        if done <= self._first or done >= self._total or now - self._last < INTERVAL:
            return
        self._last = now
        left = (now - self._began) / (done - self._first) * (self._total - done)
        self._log(f"{self._what}: {done:,} of {self._total:,} {unit}, {duration(left)} left")


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
