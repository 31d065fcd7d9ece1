"""Runs of test_offload.py over the ranks started: cases, settings of DeepSpeed that are refused or not, and an overflow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from worker_layouts import CPU, keep_collections_short, run_case, train

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import barrier, process_group
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.engine.engine import build_engine
from dist_metaxlm.training.engine.model import build_model


def engine_of(job: dict[str, Any], overrides: list[str]) -> tuple[Any, Any]:
    recipe = load_recipe(job["recipe"], overrides)
    return build_engine(build_model(recipe, recipe.phases["joint"]), recipe, CPU, groups().data_size), recipe


def built(job: dict[str, Any], overrides: list[str]) -> str:
    """The sentence with which building an engine is refused; empty where it is not."""
    try:
        engine, _ = engine_of(job, overrides)
    except UserError as error:
        return str(error)
    engine.destroy()
    return ""


def overflowing(job: dict[str, Any], overrides: list[str]) -> list[float]:
    """Gradient norms of a step whose gradients are not finite, and of those after it."""
    engine, recipe = engine_of(job, overrides)
    first = next(param for _, param in optimizer_state.named_parameters(engine))
    hook = first.register_hook(lambda gradient: gradient * torch.inf)
    norms = train(engine, recipe, 0, 1, 1e-3)[1]
    hook.remove()
    norms += train(engine, recipe, 1, 3, 1e-3)[1]
    engine.destroy()
    return norms


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    topology = detect_topology()
    keep_collections_short()
    with process_group(topology, CPU):
        results = [run_case(case, job) for case in job["cases"]]
        refusals = []
        for overrides in job["settings"]:
            refusals.append(built(job, overrides))
            barrier()
        norms = [overflowing(job, overrides) for overrides in job["overflows"]]
        Path(job["output"]).with_name(f"refusals-{topology.rank}.json").write_text(json.dumps([refusals, norms]))
        if topology.is_first:
            Path(job["output"]).write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
