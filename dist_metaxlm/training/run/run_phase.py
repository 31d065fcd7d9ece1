"""One phase inside the process group: build, load, engine, install, announce, train."""

from __future__ import annotations

import logging

from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.kernels import registry
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.training.engine.engine import build_engine
from dist_metaxlm.training.engine.model import build_model
from dist_metaxlm.training.loop.loop import train
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run.announcement import announce
from dist_metaxlm.training.run.context import RunContext
from dist_metaxlm.training.run.lifecycle import begin, finish
from dist_metaxlm.training.run.starting_point import StartingPoint, resumed_or

logger = logging.getLogger(__name__)


def run_phase(context: RunContext, origin: StartingPoint) -> None:
    """Train the phase from its current progress to its end, inside the process group (collective).

    Raises:
        UserError: if the phase cannot start from its checkpoint or `origin`; then the run's folder is unchanged.
    """
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
    train(engine, context, plan, progress)
    if first:
        finish(context, progress)
