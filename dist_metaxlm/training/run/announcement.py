"""Log lines before training begins: rank placement, the model and the starting point."""

from __future__ import annotations

import logging

from dist_metaxlm.parallel.affinity import threads
from dist_metaxlm.parallel.environment import shown
from dist_metaxlm.parallel.placement import check_placement, placement_lines
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.origins import source_of, successors
from dist_metaxlm.recipe.phases import phase_difference
from dist_metaxlm.recipe.schema import LearningRate, Recipe
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.engine.engine import resolve_precision
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run.before import warn_of_stale_phases
from dist_metaxlm.training.run.context import RunContext
from dist_metaxlm.training.run.layout import layout_name
from dist_metaxlm.training.run.starting_point import StartingPoint

logger = logging.getLogger(__name__)


def show_placement(recipe: Recipe, topology: Topology, always: bool = False) -> None:
    """Log which rank does what on which node and how the collectives are configured; refuse an illegal placement.

    A single rank is shown only with `always`.

    Raises:
        UserError: if the ranks' actual nodes differ from the launcher's variables, and a tensor group spans nodes.
    """
    layout = recipe.parallel
    placement = check_placement(topology, layout.tensor, layout.pipeline, layout.tensor_across_nodes)
    if topology.world_size > 1 or always:
        for line in placement_lines(placement):
            logger.info(line)
        logger.info(f"  {shown()}; {pluralize(threads(topology), 'thread')} a rank, started by {topology.launcher}")


def announce(context: RunContext, start: StartingPoint, progress: Progress) -> None:
    """Log what is trained, how the phases differ, and what the phase starts from. First rank only."""
    recipe, options, topology, device = context.recipe, context.options, context.topology, context.device
    logger.info(
        f"{recipe.name}, phase {options.phase}: {count_parameters(recipe.model).total:,} parameters, "
        f"{pluralize(context.phase.total_steps, 'step')}, {pluralize(topology.world_size, 'rank')} on "
        f"{pluralize(topology.nodes, 'node')}, {device.type}, {resolve_precision(recipe, device)}, "
        f"{layout_name(recipe.parallel, topology.world_size)}, in {context.folder.path}"
    )
    for before, after in neighbours(recipe, options.phase):
        rows = phase_difference(recipe, before, after)
        changes = "; ".join(f"{key} {_value(old)} -> {_value(new)}" for key, old, new in rows)
        logger.info(f"{before} -> {after} changes: {changes}")
    for line in start.describe():
        logger.info(line)
    warning = warmup_warning(options.phase, context.phase.total_steps + start.schedule_offset, context.phase.learning_rate)
    if warning is not None:
        logger.warning(warning)
    if progress.step:
        warn_of_stale_phases(context.folder.run_dir, options.recipe, options.overrides)


def neighbours(recipe: Recipe, phase: str) -> list[tuple[str, str]]:
    """The phase with the one that it continues from, or else with those that continue from it."""
    source = source_of(recipe, phase)
    if source is not None and source.phase in recipe.phases:
        return [(source.phase, phase)]
    return [(phase, other) for other in successors(recipe, phase)]


def warmup_warning(phase: str, steps: int, config: LearningRate) -> str | None:
    """A sentence if a schedule of `steps` optimiser steps ends before its warm-up does; else None."""
    if config.warmup_steps < steps:
        return None
    return (
        f"phases.{phase}.learning_rate.warmup_steps={config.warmup_steps} is not below the {pluralize(steps, 'step')} of "
        f"the schedule, so the learning rate never reaches its peak of {config.peak:g}; lower warmup_steps or train longer"
    )


def _value(value: object) -> str:
    return "unset" if value is None else str(value)
