"""A throughput measurement with its context: hardware, versions, commit, date, command."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping

from dist_metaxlm.benchmarking.training.throughput import Comparison, Setting, compare_with_huggingface
from dist_metaxlm.parallel.process_group import pick_device, process_group
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.training.run.environment import environment


class Throughput(Comparison):
    """A comparison with the environment of the measurement."""

    environment: Environment


def measure_throughput(
    recipe_name: str,
    overrides: list[str],
    steps: int,
    batch_tokens: int,
    rows: int,
    documents: str = "store",
    seconds: float | None = None,
    keep: Callable[[Mapping[str, object]], None] = lambda so_far: None,
) -> Throughput:
    """Throughput of a recipe's model against Hugging Face, in one process, with the environment of the measurement.

    `keep` receives our results before the baseline is compiled, which may take minutes.
    """
    recipe = load_recipe(recipe_name, overrides)
    topology = detect_topology()
    device = pick_device(topology)
    engine = importlib.util.find_spec("deepspeed") is not None
    with process_group(topology, device) if engine else contextlib.nullcontext():
        comparison = compare_with_huggingface(
            Setting(recipe, steps, batch_tokens, rows, documents, seconds),
            device,
            lambda so_far: keep({**so_far, "environment": environment()}),
        )
    return {**comparison, "environment": environment()}
