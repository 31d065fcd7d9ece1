"""`--dry_run`: every check of a real start that needs no other rank, and what the start would train; writes nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from dist_metaxlm.data.tokens.digest_check import DigestCheck
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.planning.memory import estimate_memory
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.planning.stages import model_stages, needs_blocks
from dist_metaxlm.preparation.corpus import corpus
from dist_metaxlm.preparation.prepare import is_prepared
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.metrics import read_metrics
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.checkpointing.disk_space import check_room
from dist_metaxlm.training.engine.engine import resolve_precision
from dist_metaxlm.training.loop.heldout import OpenHeldout
from dist_metaxlm.training.loop.probing import OpenProbe
from dist_metaxlm.training.run.announcement import show_placement, warmup_warning
from dist_metaxlm.training.run.context import Options
from dist_metaxlm.training.run.lease import check_free
from dist_metaxlm.training.run.lifecycle import check_recipe, is_finished
from dist_metaxlm.training.run.prepared_data import open_data
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.starting_point import origin_of

logger = logging.getLogger(__name__)


def dry_run(recipe: Recipe, options: Options, topology: Topology, open_probe: OpenProbe, open_heldout: OpenHeldout) -> None:
    """Check a start and log what it would do, in the order of a real one.

    Raises:
        UserError: as a real start would.
    """
    show_placement(recipe, topology, always=True)
    folder = PhaseFolder(options.run_dir or Path("runs") / recipe.name, options.phase)
    if is_finished(recipe, options, folder):
        folder.check(recipe)
        logger.info(f"phase {options.phase} of {folder.run_dir} is already finished; a start would train nothing")
        return
    warning = check_room(folder.checkpoints, recipe, options.phase, from_scratch=options.resume == "never")
    origin_of(recipe, folder, options).check()
    _check_data(recipe, options, topology, open_probe, open_heldout)
    if topology.is_first:
        check_recipe(recipe, options, folder)
        check_free(folder.run_dir, folder.phase)
    phase = recipe.phase(options.phase)
    for sentence in (warning, warmup_warning(options.phase, phase.total_steps, phase.learning_rate)):
        if sentence:
            logger.warning(sentence)
    for line in (*_size(recipe, options.phase, topology), _duration(recipe, folder)):
        logger.info(line)
    logger.info("dry run: a start with these options passes its checks; nothing was written")


def _check_data(
    recipe: Recipe, options: Options, topology: Topology, open_probe: OpenProbe, open_heldout: OpenHeldout
) -> None:
    """Prepared data are opened and compared with their checksums; otherwise the files to prepare are looked for."""
    directory = Path(recipe.data.directory)
    if not is_prepared(recipe):
        if recipe.data.corpus == "files" and not (directory / "corpus").is_dir():
            corpus.sources(recipe.data)
        logger.info(f"data: {directory} is not prepared yet; a start prepares it first, as metaxlm prepare does")
        return
    open_data(recipe, options.phase)
    if recipe.training.probe_interval:
        open_probe(recipe)
    if recipe.training.heldout_interval:
        open_heldout(recipe, options.phase)
    store = TokenStore.open(directory / "store")
    check = DigestCheck(directory / "store", store.vocab_size, topology.local_rank, topology.local_world_size)
    check.begin()
    check.end()
    check.refuse(lambda fault: fault)  # every rank reports its own share
    tokens = sum(int(entry["tokens"]) for entry in store.manifest["text"].values())
    logger.info(
        f"data: {directory} matches the recipe and its checksums so far as a start reads them, {tokens:,} tokens of text"
    )


def _size(recipe: Recipe, name: str, topology: Topology) -> list[str]:
    """Parameters, steps, tokens, and the memory of the fullest rank beside that of the device."""
    phase, layout = recipe.phase(name), recipe.parallel.layout(topology.world_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(recipe, device)
    share = max([1, *(objective.tokens_per_step // max(1, layout.data) for objective in phase.objectives)])
    tokens = min(share, layout.micro_batch_tokens or share)
    stages = model_stages(
        recipe.model, phase.sequence_length, phase.targets_per_token, layout.pipeline, needs_blocks(recipe)
    )
    needed = estimate_memory(recipe.model, layout, precision, tokens, phase.targets_per_token, stages).total
    if device.type == "cuda":
        room, ranks, of = torch.cuda.get_device_properties(0).total_memory, 1, "the device"
    else:
        room, ranks, of = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), topology.local_world_size, "this machine"
    steps = phase.total_steps
    lines = [
        f"model: {count_parameters(recipe.model).total:,} parameters, {precision}",
        f"phase {name}: {pluralize(steps, 'step', ',')}, {steps * phase.tokens_per_step:,} tokens of objectives on windows",
        f"memory: about {needed / 1e9:.2f} GB a rank, {pluralize(ranks, 'rank')} on {of} with {room / 1e9:.1f} GB",
    ]
    if needed * ranks > room:
        lines.append("warning: that is more than it has; see metaxlm plan, or lower parallel.micro_batch_tokens")
    return lines


def _duration(recipe: Recipe, folder: PhaseFolder) -> str:
    """Time left at the speed of the last logged line of this folder."""
    records = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    if not records or not records[-1].get("step") or not records[-1].get("seconds"):
        return "time: not known until the phase has logged its first line"
    left = max(0, recipe.phase(folder.phase).total_steps - records[-1]["step"])
    a_step = records[-1]["seconds"] / records[-1]["step"]
    return f"time: about {left * a_step / 60:.1f} minutes for the {pluralize(left, 'step')} left, as fast as logged so far"
