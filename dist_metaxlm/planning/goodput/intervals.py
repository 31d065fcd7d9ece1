"""Goodput over seeds, and the number of steps between checkpoints with the most of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dist_metaxlm.planning.checkpoint_size import checkpoint_bytes
from dist_metaxlm.planning.cluster import Cluster
from dist_metaxlm.planning.goodput.failures import Fleet
from dist_metaxlm.planning.goodput.simulation import Job, Outcome, simulate
from dist_metaxlm.planning.plan import Plan
from dist_metaxlm.planning.speed.recipes import DISK
from dist_metaxlm.recipe.schema import Recipe

_OCTAVES = 4
"""Intervals are tried from 2**-4 to 2**4 times Daly's, by factors of the square root of 2."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Goodput of an interval over seeds."""

    interval: int
    """Steps between checkpoints."""
    mean: float
    low: float
    """2.5 % of the runs have less."""
    high: float
    """2.5 % of the runs have more."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a layout achieves on a cluster that fails."""

    days: float
    seeds: int
    job: Job
    fleet: Fleet
    goodput: Goodput
    """With the recipe's interval."""
    best: Goodput
    """With the best interval that was tried."""
    young: int
    """Steps between checkpoints by Young (1974): sqrt(2 pause M), with M the mean time between failures."""
    daly: int
    """Steps between checkpoints by Daly (2006), the higher-order estimate."""
    tried: tuple[Goodput, ...]
    shares: dict[str, float]
    """Mean share of the time by use, with the recipe's interval: useful, slow, pause, lost, restart."""
    failures: float
    """Mean number in a run."""
    recipe_days: float
    """Days for all steps of the recipe at this goodput."""
    example: Outcome
    """The run of the first seed."""

    def as_dict(self) -> dict[str, object]:
        """Plain values, without the run of the first seed."""
        values = {key: value for key, value in vars(self).items() if key not in ("job", "fleet", "example")}
        for key in ("goodput", "best"):
            values[key] = asdict(values[key])
        fleet = {**asdict(self.fleet), "slow_hours": self.fleet.slow_hours if math.isfinite(self.fleet.slow_hours) else None}
        tried = [asdict(one) for one in self.tried]
        return {**values, "tried": tried, "checkpoint": asdict(self.job), "fleet": fleet}


def planned_job(recipe: Recipe, cluster: Cluster, chosen: Plan, pause: float | None = None) -> Job:
    """The mean step of a plan over its phases, and its most expensive checkpoint; `pause`: replaces the predicted one."""
    interval = recipe.training.checkpoint_interval
    steps = {name: phase.total_steps for name, phase in recipe.phases.items()}
    train = {name: time.seconds - time.items.get("checkpoint", 0.0) for name, time in chosen.times.items()}
    waits = max(time.items.get("checkpoint", 0.0) for time in chosen.times.values()) * interval
    size = max(checkpoint_bytes(recipe.model, phase) for phase in recipe.phases.values())
    return Job(
        step=sum(steps[name] * train[name] for name in steps) / sum(steps.values()),
        interval=interval,
        pause=waits if pause is None else pause,
        write=size / cluster.nodes / DISK if recipe.training.save_in_background else 0.0,
    )


def young_interval(job: Job, between: float) -> float:
    """Seconds of training between checkpoints (Young, CACM 17(9), 1974)."""
    return math.sqrt(2 * job.pause * between)


def daly_interval(job: Job, between: float) -> float:
    """Seconds of training between checkpoints (Daly, Future Generation Computer Systems 22, 2006, equation 37)."""
    pause = job.pause
    if pause >= 2 * between:
        return between
    ratio = pause / (2 * between)
    return math.sqrt(2 * pause * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - pause


def simulate_plan(job: Job, fleet: Fleet, days: float, seeds: int, recipe_seconds: float) -> Simulation:
    """Simulate the job, and find its best interval; all intervals have the same failures.

    recipe_seconds: of all steps of the recipe on healthy devices, without checkpoints.
    """
    runs = [simulate(job, fleet, days, seed) for seed in range(seeds)]
    asked = _summarise(job.interval, runs)
    between = fleet.between_failures
    young, daly = (_steps(job, seconds) for seconds in (young_interval(job, between), daly_interval(job, between)))
    intervals = {_steps(job, daly * job.step * 2 ** (half / 2)) for half in range(-2 * _OCTAVES, 2 * _OCTAVES + 1)}
    tried = [asked] + [
        _summarise(interval, [simulate(_with(job, interval), fleet, days, seed) for seed in range(seeds)])
        for interval in sorted((intervals | {young}) - {job.interval})
    ]
    wall = days * 86400
    uses = {
        "useful": [run.kept.useful for run in runs],
        "slow": [run.kept.slow for run in runs],
        "pause": [run.kept.pause for run in runs],
        "lost": [run.lost for run in runs],
        "restart": [run.restart for run in runs],
    }
    return Simulation(
        days=days,
        seeds=seeds,
        job=job,
        fleet=fleet,
        goodput=asked,
        best=max(tried, key=lambda one: (one.mean, one.interval)),
        young=young,
        daly=daly,
        tried=tuple(sorted(tried, key=lambda one: one.interval)),
        shares={name: float(np.mean(values)) / wall for name, values in uses.items()},
        failures=float(np.mean([run.failures for run in runs])),
        recipe_days=recipe_seconds / 86400 / asked.mean if asked.mean else math.inf,
        example=runs[0],
    )


def _with(job: Job, interval: int) -> Job:
    return Job(step=job.step, interval=interval, pause=job.pause, write=job.write)


def _steps(job: Job, seconds: float) -> int:
    """Whole steps, at least one, and as many as a checkpoint is being written."""
    return max(1, math.ceil((job.write - job.pause) / job.step), round(seconds / job.step))


def _summarise(interval: int, runs: Sequence[Outcome]) -> Goodput:
    shares = [run.goodput for run in runs]
    low, high = np.quantile(shares, [0.025, 0.975])
    return Goodput(interval=interval, mean=float(np.mean(shares)), low=float(low), high=float(high))
