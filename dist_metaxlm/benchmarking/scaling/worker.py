"""One rank of the scaling benchmark: trains a phase for a few steps; rank 0 prints time and traffic per step as JSON."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TypedDict

import torch
from torch.profiler import ProfilerActivity, profile

from dist_metaxlm.benchmarking.training.phase_steps import phase_steps
from dist_metaxlm.benchmarking.training.trace import covered
from dist_metaxlm.parallel.environment import complete_environment
from dist_metaxlm.parallel.process_group import all_reduce, barrier, pick_device, process_group
from dist_metaxlm.parallel.topology import Topology, detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.engine.execution import StepRunner
from dist_metaxlm.training.run.layout import check_layout

WARM_UP = 2
RESULT = "scaling result: "
"""Marks the line of results; launchers may put a host's name before it."""
COMMUNICATION = ("gloo:", "nccl", "c10d::")
"""The profiler's names of collectives and sends: gloo's by backend, NCCL's kernels, and the calls of both."""


class Job(TypedDict):
    """What the ranks of a measurement train."""

    recipe: str
    overrides: list[str]
    phase: str
    steps: int


class StepFigures(TypedDict):
    """The result of `measure`."""

    seconds_per_step: float
    communication_share: float
    sent_bytes: float
    """In a step, of all nodes."""
    busiest_bytes: float
    """Of the node that sends most."""


class JobReport(StepFigures):
    """What the first rank of a job prints."""

    tokens_per_step: int


def main(job: Job) -> None:
    """Measure the recipe, phase and overrides of `job` on the started ranks."""
    topology, recipe = detect_topology(), load_recipe(job["recipe"], job["overrides"])
    phase, device = recipe.phase(job["phase"]), pick_device(topology)
    check_layout(recipe, job["phase"], topology)
    complete_environment(topology, device.type == "cuda", recipe.parallel.tensor)
    with process_group(topology, device, recipe.parallel.tensor, recipe.parallel.pipeline):
        loop = phase_steps(recipe, job["phase"], device, WARM_UP + 2 * job["steps"])
        figures = measure(loop.steps, job["steps"], device, topology)
        tokens = sum(objective.tokens_per_step for objective in phase.objectives)
        if topology.is_first:
            print(RESULT + json.dumps({"tokens_per_step": tokens, **figures}), flush=True)
        loop.engine.destroy()


def measure(steps: StepRunner, count: int, device: torch.device, topology: Topology) -> StepFigures:
    """Median seconds of `count` steps and the bytes that nodes sent in each; from as many profiled steps the share spent in
    communication, including waiting for other ranks.

    The timed steps are not profiled, because the profiler slows them.
    """
    seconds = []
    for step in range(WARM_UP + count):
        barrier()
        if step == WARM_UP:
            sent_before = sent_bytes(topology)
        start = time.perf_counter()
        steps.run(step, 1e-4)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    sent = (sent_bytes(topology) - sent_before) / count
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    start = time.perf_counter()
    with profile(activities=activities) as trace:
        for step in range(WARM_UP + count, WARM_UP + 2 * count):
            steps.run(step, 1e-4)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        watched = time.perf_counter() - start
    spans = [
        (event.time_range.start, event.time_range.end) for event in trace.events() if event.name.startswith(COMMUNICATION)
    ]
    share, total, busiest = (
        torch.tensor([value], dtype=torch.float64, device=device) for value in (covered(spans) / 1e6 / watched, sent, sent)
    )
    mean = float(all_reduce(share)) / torch.distributed.get_world_size()
    return {
        "seconds_per_step": statistics.median(seconds[WARM_UP:]),
        "communication_share": mean,
        "sent_bytes": float(all_reduce(total)),
        "busiest_bytes": float(all_reduce(busiest, "max")),
    }


def sent_bytes(topology: Topology, table: Path = Path("/proc/self/net/dev")) -> int:
    """Bytes that this node has sent so far through the interface that leads to the others, counted by its first rank.

    0 on one node, and on the node's other ranks. The kernel does not count RDMA traffic.
    """
    name = next((os.environ[n].lstrip("=") for n in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if os.environ.get(n)), None)
    if topology.nodes == 1 or topology.local_rank or name is None:
        return 0
    for line in table.read_text(encoding="ascii").splitlines():
        interface, _, numbers = line.partition(":")
        if interface.strip() == name:
            return int(numbers.split()[8])
    return 0


if __name__ == "__main__":
    from dist_metaxlm.errors import run_command

    run_command(lambda: main(json.loads(sys.argv[1])))
