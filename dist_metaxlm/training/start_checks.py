"""Refuses a run that cannot work on its ranks, its machine or its disk, before anything else starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from dist_metaxlm.deepspeed_adapter.loss_scaling import check_fp16
from dist_metaxlm.errors import EXIT_USER, UserError
from dist_metaxlm.kernels import registry
from dist_metaxlm.parallel.process_group import check_devices, largest
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.tracking.registry import check_trackers
from dist_metaxlm.training.checkpointing.disk_space import check_room
from dist_metaxlm.training.run.context import Options
from dist_metaxlm.training.run.layout import automatic_precision, check_layout
from dist_metaxlm.training.run.lease import Lease
from dist_metaxlm.training.run.lifecycle import check_recipe
from dist_metaxlm.training.run.run_folder import PhaseFolder

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def check_start(recipe: Recipe, options: Options, topology: Topology) -> None:
    """Refuse a run that is impossible on these ranks or this machine, before anything else starts."""
    recipe.phase(options.phase)
    if options.resume not in ("auto", "never") and not options.resume.isdecimal():
        raise UserError(f"--resume {options.resume!r} is neither auto, never nor the step of a checkpoint")
    check_layout(recipe, options.phase, topology, automatic_precision(recipe))
    check_devices(topology)
    check_fp16(recipe.training.precision)
    if topology.is_first:  # the others have no trackers
        check_trackers(recipe.training.trackers)
    registry.force(recipe.training.kernels)


def check_disk(recipe: Recipe, options: Options, topology: Topology, folder: PhaseFolder) -> None:
    """Refuse a disk without room for a checkpoint; warn if it has little."""
    warning = check_room(folder.checkpoints, recipe, options.phase, from_scratch=options.resume == "never")
    if warning and topology.is_first:
        logger.warning(warning)


def take_folder(recipe: Recipe, options: Options, folder: PhaseFolder) -> Lease:
    """The lease of a phase's folder. First rank only.

    Raises:
        UserError: if the recipe does not match the folder, or another job writes into it.
    """
    check_recipe(recipe, options, folder)
    return Lease(folder.run_dir, folder.phase, folder.checkpoints)


def on_first_rank(action: Callable[[], Result], topology: Topology, device: torch.device) -> Result | None:
    """The result of `action` on the first rank, None on the others (collective).

    Raises:
        UserError: on the first rank, if `action` does.
        SystemExit: then on the other ranks, which without it would wait for the first one and end in a traceback.
    """
    result, refused = None, None
    if topology.is_first:
        try:
            result = action()
        except UserError as error:
            refused = error
    if largest(int(refused is not None), device):
        raise refused or SystemExit(EXIT_USER)
    return result
