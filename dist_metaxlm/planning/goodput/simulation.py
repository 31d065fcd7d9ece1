"""One run under failures and slow devices, as a discrete-event simulation (simpy).

Failures, slow periods and restarts are events. Between two events every step takes the same time, so steps and checkpoints
are counted, not simulated one by one: a month of 16,384 devices is some hundred events. Synchronous training is as slow as
its slowest device. A checkpoint counts once it is on the disk; what came after the last one is trained again.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.goodput.failures import SLOW_FACTORS, SLOW_SECONDS, Fleet

if TYPE_CHECKING:
    import simpy

_FAILURE, _SPEED = "failure", "speed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained."""

    step: float
    """Seconds of a step without checkpoints, on healthy devices."""
    interval: int
    """Steps between checkpoints."""
    pause: float
    """Seconds that training waits for a checkpoint."""
    write: float
    """Seconds after the pause until the checkpoint is on the disk."""

    @property
    def work(self) -> float:
        """Seconds of training between two checkpoints."""
        return self.step * self.interval

    @property
    def waits(self) -> float:
        """Seconds of a pause; if writing takes longer than an interval, training waits for it."""
        return max(self.pause, self.write - self.work)


@dataclass(kw_only=True)
class Span:
    """Seconds of training by kind."""

    useful: float = 0.0
    slow: float = 0.0
    pause: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.useful + self.slow + self.pause

    def add(self, other: Span) -> None:
        """Add the other's seconds."""
        self.useful += other.useful
        self.slow += other.slow
        self.pause += other.pause


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of the run's timeline, in seconds from its start; kinds: training, slow, lost, restart."""

    kind: str
    start: float
    end: float


@dataclass(kw_only=True)
class Outcome:
    """A simulated run: its seconds by use, which add up to `wall`."""

    wall: float
    kept: Span
    """Training that counts, its slow part and its pauses for checkpoints."""
    lost: float
    """Training after the last checkpoint before a failure."""
    restart: float
    failures: int
    segments: list[Segment]

    @property
    def goodput(self) -> float:
        """Share of the time in which healthy devices would have trained the steps that count."""
        return self.kept.useful / self.wall

    @property
    def effective(self) -> float:
        """Share of the time spent on training that counts, slow or not (the "effective training time" of Llama 3)."""
        return (self.kept.useful + self.kept.slow) / self.wall


def simulate(job: Job, fleet: Fleet, days: float, seed: int) -> Outcome:
    """One run; the same seed has the same failures and slow periods for every job.

    Raises:
        UserError: if simpy is not installed.
    """
    simpy = _simpy()
    run = _Run(simpy.Environment(), simpy.Interrupt, job, fleet, seed)
    wall = days * 86400
    run.env.run(until=wall)
    return run.outcome(wall)


def _simpy() -> Any:
    try:
        import simpy
    except ModuleNotFoundError:
        raise UserError("--simulate needs simpy, which is not installed; run: pip install 'simpy>=4.1'") from None
    return simpy


@dataclass
class _Run:
    env: simpy.Environment
    interrupt: type[Exception]
    job: Job
    fleet: Fleet
    seed: int
    factors: list[float] = field(default_factory=list)
    """Of the devices that are slow now."""
    position: Span = field(default_factory=Span)
    """Since the last checkpoint began to be written (or the start)."""
    pending: Span = field(default_factory=Span)
    """Between the last two checkpoints: kept once the last one is on the disk."""
    kept: Span = field(default_factory=Span)
    saved: float = 0.0
    """Time of the last checkpoint's pause's end."""
    lost: float = 0.0
    restarting: float = 0.0
    failures: int = 0
    segments: list[Segment] = field(default_factory=list)
    since: float = 0.0
    """Time up to which training is counted."""
    factor: float = 1.0
    resumed: float | None = None
    """Time at which the restart under way ends."""

    def __post_init__(self) -> None:
        self.trainer = self.env.process(self._train())
        self.env.process(self._fail())
        if math.isfinite(self.fleet.between_slow):
            self.env.process(self._slow_down())

    def _train(self) -> Generator[Any, Any, None]:
        while True:
            try:
                yield self.env.event()  # trains until something happens
            except self.interrupt as event:
                self._advance()
                if event.args[0] == _FAILURE:
                    self._lose()
                    yield from self._restart()
                self.factor = max([1.0, *self.factors])

    def _restart(self) -> Generator[Any, Any, None]:
        began = self.env.now
        self.resumed = began + self.fleet.restart
        while self.env.now < self.resumed:
            try:
                yield self.env.timeout(self.resumed - self.env.now)
                break
            except self.interrupt as event:
                if event.args[0] == _FAILURE:
                    self.failures += 1
                    self.resumed = self.env.now + self.fleet.restart
        self._restarted(began, self.env.now)
        self.resumed = None

    def _restarted(self, began: float, ended: float) -> None:
        self.restarting += ended - began
        self.segments.append(Segment(kind="restart", start=began, end=ended))
        self.since = self.saved = ended

    def _fail(self) -> Generator[Any, Any, None]:
        draws = np.random.default_rng([self.seed, 0])
        while True:
            yield self.env.timeout(draws.exponential(self.fleet.between_failures))
            self.trainer.interrupt(_FAILURE)

    def _slow_down(self) -> Generator[Any, Any, None]:
        draws = np.random.default_rng([self.seed, 1])
        shortest, longest = SLOW_SECONDS
        while True:
            yield self.env.timeout(draws.exponential(self.fleet.between_slow))
            factor, duration = draws.uniform(*SLOW_FACTORS), shortest * (longest / shortest) ** draws.uniform()
            self.env.process(self._slow_period(factor, duration))

    def _slow_period(self, factor: float, duration: float) -> Generator[Any, Any, None]:
        self.factors.append(factor)
        self.trainer.interrupt(_SPEED)
        yield self.env.timeout(duration)
        self.factors.remove(factor)
        self.trainer.interrupt(_SPEED)

    def _advance(self) -> None:
        """Count the training since the last event, with the factor that has held since then."""
        passed, job, factor = self.env.now - self.since, self.job, self.factor
        if passed <= 0:
            return
        self.segments.append(Segment(kind="slow" if factor > 1 else "training", start=self.since, end=self.env.now))
        cycle = job.work * factor + job.waits
        before = self.position.useful * factor + self.position.pause
        cycles, rest = divmod(before + passed, cycle)
        useful = min(rest / factor, job.work)
        begun = Span(useful=useful, slow=useful * (factor - 1), pause=max(0.0, rest - job.work * factor))
        if cycles:
            self.kept.add(self.pending)
            whole = Span(useful=job.work, slow=job.work * (factor - 1), pause=job.waits)
            rising = job.work - self.position.useful
            first = Span(useful=job.work, slow=self.position.slow + rising * (factor - 1), pause=job.waits)
            self.pending = first
            if cycles > 1:
                self.kept.add(first)
                many = cycles - 2
                self.kept.add(Span(useful=many * whole.useful, slow=many * whole.slow, pause=many * whole.pause))
                self.pending = whole
            self.saved, self.position = self.env.now - rest, begun
        else:
            slow = self.position.slow + (useful - self.position.useful) * (factor - 1)
            self.position = Span(useful=useful, slow=slow, pause=begun.pause)
        self.since = self.env.now

    def _lose(self) -> None:
        """Drop what the last checkpoint on the disk does not have."""
        self.failures += 1
        gone = self.position.total
        if self.env.now - self.saved < self.job.write:
            gone += self.pending.total
        else:
            self.kept.add(self.pending)
        self.lost += gone
        self.pending, self.position = Span(), Span()
        if gone:
            self.segments.append(Segment(kind="lost", start=max(0.0, self.env.now - gone), end=self.env.now))

    def outcome(self, wall: float) -> Outcome:
        """The run up to now; training that goes on counts."""
        if self.resumed is not None:
            # The end comes within a restart: `since` is the time of the failure.
            self._restarted(self.since, wall)
        else:
            self._advance()
        kept = Span()
        for part in (self.kept, self.pending, self.position):
            kept.add(part)
        return Outcome(
            wall=wall, kept=kept, lost=self.lost, restart=self.restarting, failures=self.failures, segments=self.segments
        )
