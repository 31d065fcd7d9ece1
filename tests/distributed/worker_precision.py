"""Layouts in half precision, with recomputation and offload, a run in fp16 that is resumed, and masters (masters.py); see
test_precision.py.

One start for all of it, because starting is what takes long.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from masters import check_masters
from worker_layouts import CPU, keep_collections_short, run_case

from dist_metaxlm.parallel.process_group import barrier, process_group
from dist_metaxlm.parallel.topology import Topology, detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.prepared_data import open_data
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.run_phase import run_phase
from dist_metaxlm.training.run.starting_point import Fresh


def train(job: dict[str, Any], topology: Topology, run: Path, resume: str) -> None:
    """What `pretrain` does inside its process group."""
    recipe, folder = load_recipe(job["recipe"], job["fp16"]), PhaseFolder(run, "joint")
    if topology.is_first:
        folder.start(recipe)
    barrier()
    tokenizer, data = open_data(recipe, "joint")
    context = RunContext(
        recipe=recipe,
        options=Options("joint", job["recipe"], run_dir=str(run), resume=resume),
        topology=topology,
        device=CPU,
        folder=folder,
        tokenizer=tokenizer,
        data=data,
    )
    run_phase(context, Fresh())
    barrier()


def train_and_resume(job: dict[str, Any], topology: Topology) -> None:
    """A run in `whole`, and in `resumed` the same from its checkpoint in the middle on."""
    whole, resumed = (Path(job["output"]).with_name(name) for name in ("whole", "resumed"))
    train(job, topology, whole, "auto")
    if topology.is_first:
        shutil.copytree(whole, resumed)
        (resumed / "joint" / "done.json").unlink()
    barrier()
    train(job, topology, resumed, str(job["resume"]))


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    topology = detect_topology()
    keep_collections_short()
    with process_group(topology, CPU):
        if job["fp16"]:
            train_and_resume(job, topology)
        results = [run_case(case, job) for case in job["cases"]]
        if job.get("masters"):
            wrong: list[Any] = [None] * topology.world_size
            dist.all_gather_object(wrong, check_masters(job, topology, job["masters"]))
            Path(job["output"]).with_name("masters.json").write_text(json.dumps(wrong))
        if topology.is_first:
            Path(job["output"]).write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
