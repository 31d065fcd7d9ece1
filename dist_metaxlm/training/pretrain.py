"""One phase of pretraining, from the command line's options to the finished phase."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from dist_metaxlm import failpoints, logs
from dist_metaxlm.deepspeed_adapter.config_files import follow_file
from dist_metaxlm.parallel.affinity import bind_cores
from dist_metaxlm.parallel.environment import complete_environment
from dist_metaxlm.parallel.launchers import check_peers, check_world_size, join_limit
from dist_metaxlm.parallel.process_group import pick_device, process_group
from dist_metaxlm.parallel.shared_facts import facts_to_share
from dist_metaxlm.parallel.topology import detect_topology, locate_ranks
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.dry_run import dry_run
from dist_metaxlm.training.loop.heldout import OpenHeldout
from dist_metaxlm.training.loop.probing import OpenProbe
from dist_metaxlm.training.run.announcement import show_placement
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.lifecycle import is_finished, report_finished
from dist_metaxlm.training.run.prepared_data import checked_store, open_data, prepare_data
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.run_phase import run_phase
from dist_metaxlm.training.run.starting_point import origin_of
from dist_metaxlm.training.start_checks import check_disk, check_start, on_first_rank, take_folder
from dist_metaxlm.training.watchdog import watchdog

__all__ = ["Options", "pretrain"]


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
    check_start(recipe, options, topology)
    parallel = recipe.parallel
    complete_environment(topology, torch.cuda.is_available(), parallel.tensor)
    if options.dry_run:
        return dry_run(recipe, options, topology, open_probe, open_heldout)
    folder = PhaseFolder(options.run_dir or Path("runs") / recipe.name, options.phase)
    if is_finished(recipe, options, folder):
        return report_finished(recipe, options, folder) if topology.is_first else None
    check_peers(topology)
    check_disk(recipe, options, topology, folder)
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
        parallel.tensor,
        parallel.pipeline,
        join_seconds=join_limit(topology, parallel.join_seconds, "join_seconds" in parallel.model_fields_set),
        facts=facts_to_share(recipe),
    ):
        show_placement(recipe, topology := locate_ranks(topology, device))
        lease = on_first_rank(partial(take_folder, recipe, options, folder), topology, device) or nullcontext()
        watch = watchdog(recipe, topology, device, folder)
        with watch, lease as held, checked_store(recipe, topology, device) as store_check:
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
