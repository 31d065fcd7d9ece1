"""Problems of a phase with the model and the data of its recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dist_metaxlm.recipe.stages import order_problems, stages

if TYPE_CHECKING:
    from dist_metaxlm.recipe.phase import PhaseConfig
    from dist_metaxlm.recipe.schema import ModelConfig


def phase_problems(where: str, phase: PhaseConfig, model: ModelConfig, longest_pair: int) -> list[str]:
    """One message for each problem; `where`: the phase's place in the recipe, `longest_pair`: of the data, in tokens."""
    problems = []
    if phase.sequence_length > model.max_positions:
        problems.append(
            f"{where}.sequence_length {phase.sequence_length} is more than model.max_positions {model.max_positions}"
        )
    for field in ("alpha", "pair_alpha"):
        points = getattr(phase, field)
        problems += [] if isinstance(points, float) else order_problems(f"{where}.{field}", points)
    shortest = min(stage.phase.sequence_length for stage in stages(phase))
    whole = [objective.name for objective in phase.objectives if objective.shows_whole_pairs]
    if longest_pair > shortest and whole:
        problems.append(
            f"data.max_pair_tokens {longest_pair} is more than {where}.sequence_length {shortest}, and {whole[0]} shows "
            f"whole pairs only; set it to {shortest}"
        )
    for field in ("rope_theta", "rope_theta_local", "local_window"):
        if getattr(phase, field) is not None and model.family != "modern":
            problems.append(f"{where}.{field} is for model.family modern and the model is {model.family}; leave it out")
    for objective in phase.objectives:
        problems += objective.model_problems(f"{where} {objective.name}", phase.model(model), phase.sequence_length)
    return problems
