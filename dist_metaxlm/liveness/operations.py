"""The last operation of this process, in memory that its watcher reads (watcher.py).

`enter` costs about a microsecond. Without a watcher it does nothing.
"""

from __future__ import annotations

import mmap
import time
from collections import defaultdict, deque
from dataclasses import dataclass

READING, FORWARD, BACKWARD, UPDATING = "reading data", "the forward pass", "the backward pass", "the update"
COLLECTIVE, EVALUATING, SAVING, STARTING = "a collective", "evaluating", "saving", "starting"
PREPARING, PIPELINE = "preparing the step", "the pipeline's passes"
BACKGROUND = "saving in the background"
OPERATIONS = (STARTING, PREPARING, READING, FORWARD, BACKWARD, UPDATING, PIPELINE, COLLECTIVE, EVALUATING, SAVING)
BYTES = 64
COUNT, OPERATION, STEP, LIMIT, SAVE_BEGUN, SAVE_LIMIT = range(6)
"""Places of the shared numbers, each a double."""
_FIRST_STEPS = 3
"""Steps of a run that may compile, allocate and open files: they have the limit of the start."""

_SHORT = 1.0
"""Seconds of an evaluation after which no rank has to wait for another."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds without a new operation after which a rank counts as hanging (recipe/watchdog.py)."""

    least: float
    factor: float
    start: float
    save: float
    evaluate: float


class Operations:
    """Notes operations, and how long they took, in `cells`."""

    def __init__(self, descriptor: int, limits: Limits, step: int, alone: bool = False) -> None:
        """`descriptor`: a file of at least `BYTES`. `step`: completed steps. `alone`: no other rank is waited for."""
        self._memory = mmap.mmap(descriptor, BYTES)
        self._cells = memoryview(self._memory).cast("d")
        self._limits, self._steps, self._alone = limits, 0, alone
        self._durations: deque[float] = deque(maxlen=200)
        self._step_begun = self._last = time.monotonic()
        self._current = STARTING
        self._slack, self._slack_until = 0.0, 0
        self.spent: defaultdict[str, float] = defaultdict(float)
        """Seconds by operation since the last `take_spent`."""
        self._cells[STEP], self._cells[SAVE_LIMIT] = step + 1, limits.save
        self.enter(STARTING)

    def enter(self, operation: str) -> None:
        """Note that `operation` begins now, and the one before has ended."""
        now = time.monotonic()
        took = now - self._last
        self.spent[self._current] += took
        if self._current == SAVING or (self._current == EVALUATING and took > _SHORT):
            self._slack, self._slack_until = self._limit(self._current), self._steps + 1
        self._last, self._current = now, operation
        cells = self._cells
        cells[OPERATION], cells[LIMIT] = OPERATIONS.index(operation), self._limit(operation)
        cells[COUNT] += 1

    def begin_step(self, step: int) -> None:
        """Note that step number `step` (from 1) begins."""
        now = time.monotonic()
        if self._steps > 1:
            self._durations.append(now - self._step_begun)
        self._step_begun = now
        self._steps += 1
        if self._steps > self._slack_until:
            self._slack = 0.0
        self._cells[STEP] = step
        self._step_limit = self.step_limit()
        self.enter(PREPARING)

    def step_limit(self) -> float:
        """max(least, factor x 99th percentile of the last 200 steps), seconds."""
        ordered = sorted(self._durations)
        slowest = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0
        return max(self._limits.least, self._limits.factor * slowest)

    def begin_background(self) -> None:
        """Note that a thread begins to save."""
        self._cells[SAVE_BEGUN] = time.monotonic()

    def end_background(self) -> None:
        """Note that no thread saves."""
        self._cells[SAVE_BEGUN] = 0.0

    def take_spent(self) -> dict[str, float]:
        """Seconds by operation since the last call."""
        taken, self.spent = dict(self.spent), defaultdict(float)
        return taken

    def close(self) -> None:
        """Release the memory."""
        self._cells.release()
        self._memory.close()

    def _limit(self, operation: str) -> float:
        """A rank that has saved or evaluated waits in the next step for one that still does, within the same limit."""
        limits = self._limits
        special = {STARTING: limits.start, SAVING: limits.save, EVALUATING: limits.evaluate}.get(operation)
        if special is not None:
            return special
        usual = limits.start if self._steps <= _FIRST_STEPS else self._step_limit
        return usual if self._alone or operation == PREPARING else max(usual, self._slack)


_current: Operations | None = None


def use(operations: Operations | None) -> None:
    """Make `operations` this process's record; None: note nothing."""
    global _current
    _current = operations


def enter(operation: str) -> None:
    """Note that `operation`, one of `OPERATIONS`, begins now."""
    if _current is not None:
        _current.enter(operation)


def begin_step(step: int) -> None:
    """Note that step number `step` (from 1) begins."""
    if _current is not None:
        _current.begin_step(step)


def begin_background() -> None:
    """Note that a thread begins to save a checkpoint."""
    if _current is not None:
        _current.begin_background()


def end_background() -> None:
    """Note that the thread has saved, or failed."""
    if _current is not None:
        _current.end_background()


def take_spent() -> dict[str, float]:
    """Seconds by operation since the last call; empty without a watcher."""
    return _current.take_spent() if _current is not None else {}
