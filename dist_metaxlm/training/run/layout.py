"""Refuses a layout that cannot work on the ranks of a job, before anything else starts (planning/legality.py)."""

from __future__ import annotations

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.planning.legality import problems, refusal
from dist_metaxlm.recipe.schema import ParallelConfig, Recipe


def check_layout(recipe: Recipe, phase_name: str, topology: Topology, precision: str | None = None) -> None:
    """Refuse a layout that cannot work on these ranks and nodes.

    precision: the value of `training.precision: auto` on their devices; None if unknown.

    Raises:
        UserError: naming all values at fault and the nearest layout that is legal.
    """
    illegal = problems(recipe, recipe.parallel.layout(topology.world_size), topology, phase_name, precision)
    if illegal:
        raise UserError(refusal(illegal))


def automatic_precision(recipe: Recipe) -> str | None:
    """The value of `training.precision: auto` on this machine if the layout depends on it (ZeRO-0); else None.

    Otherwise CUDA is not queried: the query would initialise it before its environment is complete.
    """
    if recipe.training.precision != "auto" or recipe.parallel.zero_stage != 0 or not torch.cuda.is_available():
        return None
    from dist_metaxlm.training.engine.engine import resolve_precision

    return resolve_precision(recipe, torch.device("cuda"))


def layout_name(layout: ParallelConfig, world_size: int) -> str:
    """Short description of the layout for the log, such as `tensor 2 (sequence) x data 4, ZeRO-1`."""
    return layout.layout(world_size).name()
