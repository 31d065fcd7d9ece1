"""Numbers of data-parallel ranks that can share the batches of a phase evenly."""

from __future__ import annotations

from dist_metaxlm.recipe.schema import PhaseConfig
from dist_metaxlm.recipe.stages import stages


def undivided(phase: PhaseConfig, world_size: int) -> list[str]:
    """Batches of a phase that do not divide evenly over data-parallel ranks, each with the nearest that does."""
    own = (stage.phase for stage in stages(phase))
    problems = (objective.undivided(phase.sequence_length, world_size) for phase in own for objective in phase.objectives)
    return list(dict.fromkeys(problem for problem in problems if problem is not None))
