"""Numbers of data-parallel ranks that can share the batches of a phase evenly."""

from __future__ import annotations

from dist_metaxlm.recipe.schema import PhaseConfig


def undivided(phase: PhaseConfig, world_size: int) -> list[str]:
    """Batches of a phase that do not divide evenly over data-parallel ranks, each with the nearest that does."""
    problems = (objective.undivided(phase.sequence_length, world_size) for objective in phase.objectives)
    return [problem for problem in problems if problem is not None]
