"""Which numbers of data-parallel ranks can share the batches of a phase evenly."""

from __future__ import annotations

from dist_metaxlm.recipe.schema import Contrast, CrossLingualContrast, PairObjective, PhaseConfig
from dist_metaxlm.text import counted


def undivided(phase: PhaseConfig, world_size: int) -> list[str]:
    """What of a phase cannot be cut evenly over so many data-parallel ranks, each with the nearest that can."""
    problems = []
    for objective in phase.objectives:
        if isinstance(objective, Contrast | CrossLingualContrast) and objective.group is not None:
            if objective.share_of_group(objective.group, world_size) is None:
                unit = world_size * objective.pairs_together
                nearest = max(1, round(objective.group / unit)) * unit
                pairs = max(1, round(objective.pairs / nearest)) * nearest  # a multiple of the group, or that is refused
                groups = counted(objective.pairs // objective.group, "group")
                problems.append(
                    f"{objective.name}: neither its {groups} nor its group of {objective.group} pairs can be "
                    f"shared by {world_size} ranks; nearest: group {nearest} and pairs {pairs}"
                )
        elif isinstance(objective, PairObjective):
            if objective.examples % world_size:
                nearest = max(1, round(objective.examples / world_size)) * world_size * objective.pairs_together
                problems.append(
                    f"{objective.name}: pairs {objective.pairs} is {counted(objective.examples, 'example')}, "
                    f"not a multiple of {world_size} ranks; nearest: {nearest}"
                )
        else:
            windows = objective.batch_tokens // phase.sequence_length
            if windows % world_size:
                nearest = max(1, round(windows / world_size)) * world_size * phase.sequence_length
                problems.append(
                    f"{objective.name}: batch_tokens {objective.batch_tokens} is {counted(windows, 'window')}, "
                    f"not a multiple of {world_size} ranks; nearest: {nearest}"
                )
    return problems
