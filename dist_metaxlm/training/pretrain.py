"""One phase of pretraining, from the command line's options to the finished phase."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch

from dist_metaxlm import failpoints, logs
from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.deepspeed_adapter.loss_scaling import check_fp16
from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry
from dist_metaxlm.liveness.operations import Limits
from dist_metaxlm.liveness.watchdog import watched
from dist_metaxlm.parallel.affinity import bind_cores
from dist_metaxlm.parallel.environment import complete_environment
from dist_metaxlm.parallel.launchers import check_peers, check_world_size, join_limit
from dist_metaxlm.parallel.process_group import check_devices, largest, pick_device, process_group
from dist_metaxlm.parallel.shared_facts import facts_to_share
from dist_metaxlm.parallel.topology import Topology, detect_topology, locate_ranks
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.tracking.registry import check_trackers
from dist_metaxlm.training.checkpointing.disk_space import check_room
from dist_metaxlm.training.dry_run import dry_run
from dist_metaxlm.training.loop.heldout import OpenHeldout
from dist_metaxlm.training.loop.probing import OpenProbe
from dist_metaxlm.training.run.announcement import show_placement
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.layout import automatic_precision, check_layout
from dist_metaxlm.training.run.lease import Lease
from dist_metaxlm.training.run.lifecycle import check_recipe, is_finished, report_finished
from dist_metaxlm.training.run.prepared_data import checked_store, open_data, prepare_data
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.run_phase import run_phase
from dist_metaxlm.training.run.starting_point import origin_of

__all__ = ["Options", "pretrain"]
logger = logging.getLogger(__name__)


def pretrain(options: Options, open_probe: OpenProbe, open_heldout: OpenHeldout) -> None:
    """Run or resume one phase of a recipe on all ranks of the job, or report that it is already finished.

    `open_probe` is called if the recipe has probes, `open_heldout` if it measures held-out text while training.

    Raises:
        UserError: for all errors that the user can correct, before anything is written where possible.
    """
    topology = detect_topology()
    logs.set_up(topology.rank, topology.world_size)
    failpoints.plant(topology.rank)
    check_world_size(topology, options.expect_world_size)
    asked = options.loaded or load_recipe(options.recipe, options.overrides, layout_later=True)
    recipe = follow_file(asked, options.deepspeed_config)
    _check(recipe, options, topology)
    complete_environment(topology, torch.cuda.is_available(), recipe.parallel.tensor)
    if options.dry_run:
        dry_run(recipe, options, topology, open_probe, open_heldout)
        return
    folder = PhaseFolder(options.run_dir or Path("runs") / recipe.name, options.phase)
    if is_finished(recipe, options, folder):
        if topology.is_first:
            report_finished(recipe, options, folder)
        return
    check_peers(topology)
    _check_room(recipe, options, topology, folder)
    (origin := origin_of(recipe, folder, options)).check()
    prepare_data(recipe, topology)
    tokenizer, data = open_data(recipe, options.phase)  # on errors the phase's folder is unchanged
    probe = open_probe(recipe) if recipe.training.probe_interval else None
    heldout = open_heldout(recipe, options.phase) if recipe.training.heldout_interval else None
    bind_cores(topology)
    device = pick_device(topology)
    with process_group(
        topology,
        device,
        recipe.parallel.tensor,
        recipe.parallel.pipeline,
        join_seconds=join_limit(topology, recipe.parallel.join_seconds, "join_seconds" in recipe.parallel.model_fields_set),
        facts=facts_to_share(recipe),
    ):
        show_placement(recipe, topology := locate_ranks(topology, device))
        if topology.is_first:
            check_recipe(recipe, options, folder)
        lease = Lease(folder.run_dir, folder.phase, folder.checkpoints) if topology.is_first else nullcontext()
        watchdog, check = _watchdog(recipe, topology, device, folder), checked_store(recipe, topology, device)
        with watchdog, lease as held, check as store_check:
            context = RunContext(
                recipe=recipe,
                options=options,
                topology=topology,
                device=device,
                folder=folder,
                tokenizer=tokenizer,
                data=data,
                probe=probe,
                heldout=heldout,
                store_check=store_check,
                lease=held,
            )
            run_phase(context, origin)


def _watchdog(recipe: Recipe, topology: Topology, device: torch.device, folder: PhaseFolder) -> AbstractContextManager[None]:
    """Watches this rank (collective: the ranks agree on the folder of their reports)."""
    config = recipe.training.watchdog
    begun = largest(int(1000 * time.time()), device)
    if not config.enabled:
        return nullcontext()
    name = datetime.fromtimestamp(begun / 1000, UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    limits = Limits(
        least=config.limit_seconds,
        factor=config.step_factor,
        start=config.start_seconds,
        save=config.save_seconds,
        evaluate=config.evaluate_seconds,
    )
    return watched(folder.path / "hangs" / name, topology.rank, topology.world_size, limits)


def _check_room(recipe: Recipe, options: Options, topology: Topology, folder: PhaseFolder) -> None:
    """Refuse a disk without room for a checkpoint; warn if it has little."""
    warning = check_room(folder.checkpoints, recipe, options.phase, from_scratch=options.resume == "never")
    if warning and topology.is_first:
        logger.warning(warning)


def _check(recipe: Recipe, options: Options, topology: Topology) -> None:
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
