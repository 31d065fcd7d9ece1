"""Strong and weak scaling over data, tensor and pipeline parallel ranks, on one machine or over nodes.

Strong: the recipe's batch on more ranks. Weak: a batch that grows with the ranks, so that the work per rank is constant.
On CPU one rank uses all cores and several share them, so results on one machine show the overhead of a layout, not its
gain.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict, cast

from dist_metaxlm.benchmarking.scaling.worker import RESULT, Job, JobReport
from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.communication import predict_traffic
from dist_metaxlm.preparation.prepare import prepare
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.run.environment import environment

KINDS = ("data", "tensor", "pipeline")
SCALINGS = ("strong", "weak")


@dataclass(frozen=True)
class Place:
    """Where the ranks of a measurement run."""

    unit: Literal["ranks", "nodes"]
    """Unit of counting: `ranks` of this machine or `nodes`."""
    ranks: int
    """Ranks of a unit."""
    run: Callable[[int, Job], JobReport]
    """Train a job on a number of units; returns the report of its first rank."""
    link_megabits: float | None = None
    """Bandwidth of a node's link in megabits per second, if known."""


@dataclass(frozen=True)
class Experiment:
    """What is measured."""

    recipe: str
    overrides: tuple[str, ...]
    phase: str
    counts: tuple[int, ...]
    """Ranks or nodes."""
    steps: int
    repeats: int
    kinds: tuple[str, ...] = KINDS
    scalings: tuple[str, ...] = SCALINGS


class Row(TypedDict):
    """A layout on a number of ranks or nodes."""

    scaling: str
    kind: str
    ranks: int
    tokens_per_step: int
    seconds_per_step: float
    seconds_of_runs: list[float]
    tokens_per_second: float
    communication_share: float
    communication_seconds: float
    speed_up: NotRequired[float]
    """Against one unit; set when all rows are measured, as `efficiency`."""
    efficiency: NotRequired[float]
    nodes: NotRequired[int]
    """Over nodes only, as the following."""
    sent_bytes: NotRequired[int]
    sent_bytes_of_busiest_node: NotRequired[int]
    predicted_bytes: NotRequired[float]
    predicted_bytes_of_busiest_node: NotRequired[float]


class Scaling(TypedDict):
    """The result of `measure_scaling`."""

    recipe: str
    overrides: list[str]
    phase: str
    unit: Literal["ranks", "nodes"]
    ranks_a_unit: int
    link_megabits: float | None
    steps: int
    repeats: int
    rows: list[Row]
    environment: Environment


def measure_scaling(experiment: Experiment, place: Place | None = None) -> Scaling:
    """Train some steps of a phase in every layout; repeats of the layouts alternate and the median is reported.

    Raises:
        UserError: when the recipe has no such phase, or the ranks refuse a layout.
    """
    place = place or Place("ranks", 1, run_here)
    recipe = load_recipe(experiment.recipe, experiment.overrides)
    recipe.phase(experiment.phase)
    prepare(recipe, lambda line: None)
    jobs = layouts(recipe, experiment, place)
    runs: dict[str, list[JobReport]] = {name: [] for name in jobs}
    for _ in range(experiment.repeats):
        for name, (count, job) in jobs.items():
            runs[name].append(place.run(count, job))
    rows = [_row(name, jobs[name], runs[name], place) for name in jobs]
    alone = rows[0]
    for row in rows:
        row["speed_up"] = round(row["tokens_per_second"] / alone["tokens_per_second"], 3)
        row["efficiency"] = round(row["speed_up"] * alone["ranks"] / row["ranks"], 3)
    return {
        "recipe": recipe.name,
        "overrides": list(experiment.overrides),
        "phase": experiment.phase,
        "unit": place.unit,
        "ranks_a_unit": place.ranks,
        "link_megabits": place.link_megabits,
        "steps": experiment.steps,
        "repeats": experiment.repeats,
        "rows": rows,
        "environment": environment(),
    }


def layouts(recipe: Recipe, experiment: Experiment, place: Place) -> dict[str, tuple[int, Job]]:
    """`scaling kind units` -> (units, job of a worker); the first is one unit alone, data parallel over its ranks."""
    own = list(experiment.overrides)

    def job(overrides: list[str]) -> Job:
        return {"recipe": experiment.recipe, "phase": experiment.phase, "steps": experiment.steps, "overrides": overrides}

    jobs = {"alone none 1": (1, job(own))}
    for scaling in experiment.scalings:
        for kind in experiment.kinds:
            for count in (count for count in experiment.counts if count > 1):
                larger = _larger_batch(recipe, experiment.phase, count) if scaling == "weak" else []
                jobs[f"{scaling} {kind} {count}"] = count, job([*own, *_layout(kind, count, place), *larger])
    return jobs


def _layout(kind: str, count: int, place: Place) -> list[str]:
    if kind == "tensor":
        across = ["parallel.tensor_across_nodes=true"] if place.unit == "nodes" else []
        return [f"parallel.tensor={count * place.ranks}", *across]
    return [f"parallel.pipeline={count}"] if kind == "pipeline" else ["parallel.zero_stage=1"]


def _larger_batch(recipe: Recipe, phase: str, times: int) -> list[str]:
    """Overrides that multiply every objective's batch; contrast gets more groups of the same size."""
    overrides = []
    for objective in recipe.phase(phase).objectives:
        field = objective.batch_field
        overrides.append(f"phases.{phase}.objectives.{objective.name}.{field}={getattr(objective, field) * times}")
    return overrides


def run_here(ranks: int, job: Job) -> JobReport:
    """Start the ranks of one job on this machine and return the report of the first one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dist_metaxlm.benchmarking.scaling.worker", json.dumps(job)]
    processes = [
        subprocess.Popen(
            command,
            encoding="utf-8",
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(ranks)
    ]
    outcomes = [process.communicate() for process in processes]
    code = max((process.returncode for process in processes), key=lambda code: (code == 2, abs(code)))
    errors = "\n".join(error for _, error in outcomes)
    return reported(code, outcomes[0][0], errors, f"{pluralize(ranks, 'rank')} with {job['overrides']}")


def reported(code: int, output: str, errors: str, what: str) -> JobReport:
    """The report that the first rank printed.

    Raises:
        UserError: when the ranks refused the job.
    """
    if code == 2:
        sentence = next((line for line in errors.splitlines() if "error: " in line), errors.strip()[-300:])
        raise UserError(sentence.partition("error: ")[2] or sentence)
    line = next((line for line in output.splitlines() if RESULT in line), None)
    if code or line is None:
        raise RuntimeError(f"{what} failed ({code}):\n{output[-1000:]}\n{errors[-3000:]}")
    return cast(JobReport, json.loads(line.partition(RESULT)[2]))


def _row(name: str, planned: tuple[int, Job], runs: Sequence[JobReport], place: Place) -> Row:
    scaling, kind, _ = name.split()
    count, job = planned
    seconds = statistics.median(run["seconds_per_step"] for run in runs)
    share = statistics.median(run["communication_share"] for run in runs)
    row: Row = {
        "scaling": scaling,
        "kind": kind,
        "ranks": count * place.ranks,
        "tokens_per_step": runs[0]["tokens_per_step"],
        "seconds_per_step": round(seconds, 4),
        "seconds_of_runs": [round(run["seconds_per_step"], 4) for run in runs],
        "tokens_per_second": round(runs[0]["tokens_per_step"] / seconds, 1),
        "communication_share": round(share, 4),
        "communication_seconds": round(share * seconds, 4),
    }
    if place.unit == "nodes":
        recipe = load_recipe(job["recipe"], job["overrides"])
        predicted = predict_traffic(recipe, job["phase"], count, place.ranks)
        row |= {
            "nodes": count,
            "sent_bytes": round(statistics.median(run["sent_bytes"] for run in runs)),
            "sent_bytes_of_busiest_node": round(statistics.median(run["busiest_bytes"] for run in runs)),
            "predicted_bytes": predicted.total,
            "predicted_bytes_of_busiest_node": predicted.busiest,
        }
    return row
