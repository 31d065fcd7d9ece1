"""Time breakdown of a training step: steps of the real loop under torch's profiler, by component and pass.

As many steps are first timed without the profiler: it slows steps, so only its shares are used, not its seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch.profiler import ProfilerActivity, profile

from dist_metaxlm.benchmarking.training.labels import STEP, label, labelled, waiting
from dist_metaxlm.benchmarking.training.phase_steps import phase_steps
from dist_metaxlm.benchmarking.training.trace import PASSES, Breakdown, breakdown, device_busy
from dist_metaxlm.data.special_tokens import PAD
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.kernels import registry
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import pick_device, process_group
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.training.engine.engine import resolve_precision
from dist_metaxlm.training.run.environment import environment
from dist_metaxlm.training.run.layout import check_layout

WARM_UP = 3
OPERATORS = 25
"""Number of operators listed in the result, by time."""


Operator = TypedDict("Operator", {"name": str, "component": str, "pass": str, "share": float})


class Shares(TypedDict):
    """Of the time of a step."""

    parts: dict[str, dict[str, float]]
    """Component -> pass -> share."""
    rest: float
    """Outside of operators."""
    host_waits_per_step: dict[str, dict[str, float]]
    """Component -> cause -> waits of the host in a step."""
    operators: list[Operator]


class StepTimes(Shares):
    """The result of `measure_step`."""

    model: str
    phase: str
    device: str
    precision: str
    ranks: int
    layout: dict[str, object]
    """Fields of `parallel` of the recipe."""
    threads: int
    steps: int
    tokens_per_step: float
    seconds_per_step: float
    tokens_per_second: float
    profiled_seconds_per_step: float
    kernels: dict[str, str]
    """Operator -> backend."""
    environment: Environment


def measure_step(recipe_name: str, overrides: list[str], phase: str, count: int, trace_file: str | None) -> StepTimes:
    """Time `count` steps of a recipe's phase and profile as many more; under a launcher on all its ranks.

    Args:
        recipe_name: shipped recipe or file; `overrides` as on the command line.
        phase: meta, cross or joint.
        count: steps of either kind, after three of warm-up.
        trace_file: where the first rank writes a Chrome trace (chrome://tracing, ui.perfetto.dev); None: nowhere.

    Returns:
        JSON-ready: `parts` component -> pass -> share of the step, `rest` the share outside operators (on a CPU the
        interpreter, on a GPU its idle time), `host_waits_per_step` by component, `operators`.

    Raises:
        UserError: for a phase that the recipe does not have, or without a token store.
    """
    recipe, topology = load_recipe(recipe_name, overrides), detect_topology()
    recipe.phase(phase)
    check_layout(recipe, phase, topology)
    device = pick_device(topology)
    seen: list[torch.Tensor] = []
    with process_group(topology, device, recipe.parallel.tensor, recipe.parallel.pipeline):
        loop = phase_steps(recipe, phase, device, WARM_UP + 2 * count, waiting, lambda batch: seen.append(batch.tokens))
        learning_rate = recipe.phase(phase).learning_rate.peak

        def take(step: int) -> None:
            loop.steps.run(step, learning_rate)

        seconds, tokens = _timed(take, count, device, seen)
        sums, watched, busy = _profiled(take, loop.engine, count, device, trace_file if topology.is_first else None)
        tokens_per_step = tokens / count * groups().data_size
        loop.engine.destroy()
    return {
        "model": recipe.name,
        "phase": phase,
        "device": device.type,
        "precision": resolve_precision(recipe, device),
        "ranks": topology.world_size,
        "layout": recipe.parallel.model_dump(),
        "threads": torch.get_num_threads(),
        "steps": count,
        "tokens_per_step": tokens_per_step,
        "seconds_per_step": statistics.median(seconds),
        "tokens_per_second": tokens_per_step / statistics.median(seconds),
        "profiled_seconds_per_step": watched / count,
        **shares(sums, count, watched, busy),
        "kernels": registry.choices(),
        "environment": environment(),
    }


def _timed(
    take: Callable[[int], None], count: int, device: torch.device, seen: list[torch.Tensor]
) -> tuple[list[float], int]:
    """Seconds of each of `count` steps after the warm-up, and their total tokens without padding."""
    seconds = []
    for step in range(WARM_UP + count):
        if step == WARM_UP:
            seen.clear()
        start = time.perf_counter()
        take(step)
        _finish(device)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:], sum(int((tokens != PAD).sum()) for tokens in seen)


def _profiled(
    take: Callable[[int], None], engine: Engine, count: int, device: torch.device, trace_file: str | None
) -> tuple[Breakdown, float, float | None]:
    """Breakdown of the next `count` steps, their seconds, and the busy seconds of the device (None: a CPU)."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with labelled(engine), profile(activities=activities) as watching:
        start = time.perf_counter()
        for step in range(WARM_UP + count, WARM_UP + 2 * count):
            with label(STEP):
                take(step)
        _finish(device)
        watched = time.perf_counter() - start
    if trace_file is not None:
        Path(trace_file).parent.mkdir(parents=True, exist_ok=True)
        watching.export_chrome_trace(trace_file)
    events = list(watching.events() or ())
    on_device = device.type == "cuda"
    return breakdown(events, on_device), watched, device_busy(events) / 1e6 if on_device else None


def shares(found: Breakdown, count: int, seconds: float, busy: float | None) -> Shares:
    """Shares of a breakdown of `count` steps in `seconds`, with the device busy for `busy` seconds (None: a CPU)."""
    whole = seconds * 1e6
    explained = found.total() / whole if busy is None else busy / seconds
    ranked = sorted(found.parts.items(), key=lambda part: -sum(part[1].values()))
    return {
        "parts": {name: {kind: passes[kind] / whole for kind in PASSES if kind in passes} for name, passes in ranked},
        "rest": 1 - explained,
        "host_waits_per_step": {
            name: {cause: number / count for cause, number in causes.items()} for name, causes in sorted(found.waits.items())
        },
        "operators": [
            {"name": name, "component": component, "pass": kind, "share": time / whole}
            for (name, component, kind), time in sorted(found.operators.items(), key=lambda entry: -entry[1])[:OPERATORS]
        ],
    }


def table(result: StepTimes) -> str:
    """The breakdown as a Markdown table."""
    lines = [
        f"{result['model']}, phase {result['phase']}, {result['device']}, {result['precision']}: "
        f"{result['seconds_per_step']:.4g} s a step, {result['tokens_per_second']:,.0f} tokens/s "
        f"({result['profiled_seconds_per_step']:.4g} s under the profiler)",
        "",
        f"| part of the step | {' | '.join(PASSES)} | together |",
        "|---|" + "---|" * (len(PASSES) + 1),
    ]
    for name, passes in result["parts"].items():
        cells = [f"{passes[kind]:.1%}" if kind in passes else "" for kind in PASSES]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(passes.values()):.1%} |")
    rest = "the device idle" if result["device"] == "cuda" else "the interpreter and what no operator explains"
    lines += [f"| {rest} |{' |' * len(PASSES)} {result['rest']:.1%} |", ""]
    waits = [
        f"{cause} {number:g} times a step ({name})"
        for name, causes in result["host_waits_per_step"].items()
        for cause, number in causes.items()
    ]
    return "\n".join([*lines, "the host waits for results: " + ("; ".join(waits) if waits else "never")])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
