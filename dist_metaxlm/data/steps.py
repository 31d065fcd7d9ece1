"""The contents of one optimiser step: this rank's samples by objective and micro-step.

The global batch of a step is fixed by the recipe; ranks and micro-batches only divide it. Every micro-step has the same
objective on all ranks, and each objective is divided by its own denominator, so no layout changes the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from dist_metaxlm.data.stages import StagedSamples
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Objective, PhaseConfig
from dist_metaxlm.recipe.sharing import undivided
from dist_metaxlm.text import pluralize


@dataclass(frozen=True, kw_only=True)
class MicroStep:
    """One forward and backward pass of this rank."""

    objective: Objective
    """What is learnt."""
    first: int
    """First sample number (window or translation pair) of the objective in this phase."""
    count: int
    """Samples taken."""
    window: int
    """Tokens of a window."""
    stage: int
    """Number of the stage of the phase (recipe/stages.py)."""
    factor: float
    """Multiplies the sum of losses: weight / (denominator of the objective for the whole step)."""


class StepPlan:
    """Cuts the global batch of each step into this rank's micro-steps."""

    def __init__(
        self, phase: PhaseConfig, phase_name: str, seed: int, rank: int, world_size: int, micro_batch_tokens: int | None
    ) -> None:
        self.phase, self.rank, self.world_size = phase, rank, world_size  # of the data-parallel group
        self._staged = StagedSamples(phase, phase_name, seed)
        self._micro_batch_tokens = micro_batch_tokens or 2**62
        check_batches(phase, phase_name, world_size)

    def objectives_at(self, step: int) -> list[tuple[Objective, float, int]]:
        """(objective, weight in this step's loss, number of earlier steps with the objective)."""
        return self._staged.objectives_at(step)

    def at(self, step: int) -> list[MicroStep]:
        """This rank's micro-steps of optimiser step `step`, in order; the same objectives on all ranks."""
        number = self._staged.stage_of(step)
        phase = self._staged.stages[number].phase
        return [
            MicroStep(
                objective=objective,
                first=samples.start,
                count=len(samples),
                window=phase.sequence_length,
                stage=number,
                factor=weight / objective.denominator(phase.sequence_length, phase.mask_rate),
            )
            for objective, weight, turn in self.objectives_at(step)
            for samples in self._staged.cut(objective, turn, self.rank, self.world_size, self._micro_batch_tokens)
        ]

    def samples(self, objectives: list[tuple[Objective, float, int]]) -> dict[str, list[int]]:
        """First and last sample number by objective, over all ranks, of a step with `objectives` (of `objectives_at`)."""
        cuts = {objective.name: self._staged.cut(objective, turn, 0, 1, 2**62) for objective, _, turn in objectives}
        return {name: [ranges[0].start, ranges[-1].stop - 1] for name, ranges in cuts.items()}


def check_batches(phase: PhaseConfig, phase_name: str, world_size: int) -> None:
    """Check that every objective's batch divides evenly over the data-parallel ranks.

    Raises:
        UserError: naming each batch that does not, with the nearest one that does.
    """
    problems = undivided(phase, world_size)
    if problems:
        fitting = next((fewer for fewer in range(world_size - 1, 0, -1) if not undivided(phase, fewer)), None)
        instead = "" if fitting is None else f"; or let {pluralize(fitting, 'rank')} share it, not {world_size}"
        raise UserError(f"phases.{phase_name} does not divide: " + "; ".join(problems) + instead)
