"""Runs the joint phase under each layout of a job file, with planted faults; see poison.py.

One start serves many layouts, because starting takes longest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from worker_layouts import close_subgroups, keep_collections_short

from dist_metaxlm import failpoints
from dist_metaxlm.errors import HardwareFault, UserError
from dist_metaxlm.parallel.groups import form_groups
from dist_metaxlm.parallel.process_group import process_group
from dist_metaxlm.parallel.topology import Topology, detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.prepared_data import open_data
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.run_phase import run_phase
from dist_metaxlm.training.run.starting_point import Fresh

CPU = torch.device("cpu")


def train(job: dict[str, Any], case: dict[str, Any], topology: Topology) -> str:
    """The sentence with which the run ends; empty if the phase is finished."""
    recipe = load_recipe(job["recipe"], case["overrides"])
    form_groups(recipe.parallel.tensor, recipe.parallel.pipeline, CPU)
    failpoints.plant(topology.rank, case["faults"])
    tokenizer, data = open_data(recipe, "joint")
    context = RunContext(
        recipe=recipe,
        options=Options("joint", job["recipe"], run_dir=case["run"]),
        topology=topology,
        device=CPU,
        folder=PhaseFolder(case["run"], "joint"),
        tokenizer=tokenizer,
        data=data,
    )
    sentence = ""
    try:
        run_phase(context, Fresh())
    except (UserError, HardwareFault) as error:
        sentence = str(error)
    failpoints.plant(topology.rank, "")
    close_subgroups()
    return sentence


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    topology = detect_topology()
    keep_collections_short()
    with process_group(topology, CPU):
        sentences = [train(job, case, topology) for case in job["cases"]]
        Path(f"{job['output']}.{topology.rank}").write_text(json.dumps(sentences))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
