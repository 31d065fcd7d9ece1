"""One measurement with everything a reader needs to judge it: hardware, versions, commit, date, command."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

from dist_metaxlm.benchmarking.throughput import Setting, compare_with_huggingface
from dist_metaxlm.parallel.process_group import pick_device, process_group
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.environment import environment


def measure_throughput(recipe_name: str, overrides: list[str], steps: int, batch_tokens: int, rows: int,
                       documents: str = "store", seconds: float | None = None) -> dict[str, Any]:
    """Throughput of a recipe's model against Hugging Face, in one process, with the environment it was measured in."""
    recipe = load_recipe(recipe_name, overrides)
    topology = detect_topology()
    device = pick_device(topology)
    engine = importlib.util.find_spec("deepspeed") is not None
    with process_group(topology, device) if engine else contextlib.nullcontext():
        found = compare_with_huggingface(Setting(recipe, steps, batch_tokens, rows, documents, seconds), device)
    return {**found, "environment": environment()}
