"""One phase inside the process group: build, load, engine, install, announce, train."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace

import torch

from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.kernels import registry
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import barrier
from dist_metaxlm.training.engine.engine import build_engine
from dist_metaxlm.training.engine.model import build_model
from dist_metaxlm.training.loop.guard_log import GuardLog, RollBack
from dist_metaxlm.training.loop.loop import train
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run.announcement import announce
from dist_metaxlm.training.run.context import RunContext
from dist_metaxlm.training.run.lifecycle import begin, finish
from dist_metaxlm.training.run.starting_point import StartingPoint, resumed_or

logger = logging.getLogger(__name__)


def run_phase(context: RunContext, origin: StartingPoint) -> None:
    """Train the phase from its current progress to its end, inside the process group (collective).

    Bad steps in a row send it back to its last checkpoint, a limited number of times (training/loop/guards.py).

    Raises:
        UserError: if the phase cannot start from its checkpoint or `origin`; then the run's folder is unchanged. Also if it
            has returned to a checkpoint too often.
    """
    while True:
        back = _train_once(context, origin)
        if back is None:
            return
        if context.topology.is_first:
            logger.warning(f"{back}; going back to the last checkpoint")
        # `--resume never` or STEP has had its effect; from now on the newest checkpoint counts.
        context = replace(context, options=replace(context.options, resume="auto"))
        gc.collect()  # the old engine, before memory is needed for the new one
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def _train_once(context: RunContext, origin: StartingPoint) -> str | None:
    """Train from the current progress to the end of the phase; the reason if it must go back to a checkpoint first."""
    recipe, folder, first = context.recipe, context.folder, context.topology.is_first
    grid = groups()
    plan = StepPlan(
        context.phase, folder.phase, recipe.seed, grid.data_rank, grid.data_size, recipe.parallel.micro_batch_tokens
    )
    start = resumed_or(origin, context)
    model = build_model(recipe, context.phase)
    start.load(model, context.tokenizer.hash)
    if context.device.type == "cuda" or registry.forced() is not None:
        registry.tell(logger.info)
    engine = build_engine(model, recipe, context.device, grid.data_size)
    progress = Progress(folder.phase, context.tokenizer.hash, recipe.model.vocab_size, context.device, start.schedule_offset)
    start.install(engine, progress)
    if first:
        begin(context, start, progress.step)
        announce(context, start, progress)
    barrier()  # the first rank has now put an old folder aside, if the command asks for that
    log = GuardLog(folder.path, progress.guards.get("rollbacks", []))
    try:
        train(engine, context, plan, progress, log)
    except RollBack as error:
        log.roll_back(error, recipe.training.guards.rollbacks, first)
        engine.destroy()
        return str(error)
    if first:
        finish(context, progress)
    return None
