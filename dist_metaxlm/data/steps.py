"""What one optimiser step consists of: which samples of which objectives this rank takes, in which micro-steps.

The global batch of a step is fixed by the recipe; ranks and micro-batches only cut it up. Every micro-step has the same
objective on all ranks, and each objective is divided by its own denominator, so no layout changes the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_metaxlm.data.sampling.permutation import hash_u64, key
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import (
    AnyObjective,
    Contrast,
    CrossLingualContrast,
    DenoisingAlignment,
    MaskedLM,
    PhaseConfig,
    TranslationLM,
)
from dist_metaxlm.recipe.sharing import undivided
from dist_metaxlm.text import counted


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward pass of this rank."""

    objective: AnyObjective
    """What is learnt."""
    first: int
    """First sample number (window, or pair for contrast and xlco) of the objective in this phase."""
    count: int
    """Samples taken."""
    factor: float
    """Multiplies the sum of losses: weight / (items of the objective in the whole step)."""


class StepPlan:
    """Cuts the global batch of each step into this rank's micro-steps."""

    def __init__(
        self, phase: PhaseConfig, phase_name: str, seed: int, rank: int, world_size: int, micro_batch_tokens: int | None
    ) -> None:
        self.phase, self.rank, self.world_size = phase, rank, world_size  # of the data-parallel group
        self._key = key(seed, phase_name, "objective")
        self._micro_tokens = micro_batch_tokens or 2**62
        self._micro_windows = max(1, self._micro_tokens // phase.sequence_length)
        self.targets_per_window = round(phase.mask_rate * phase.sequence_length)
        weights = np.cumsum([objective.weight for objective in phase.objectives])
        self._cumulative = weights / weights[-1]
        check_batches(phase, phase_name, world_size)

    def objectives_at(self, step: int) -> list[tuple[AnyObjective, float, int]]:
        """(objective, weight in this step's loss, how often the objective was taken before this step)."""
        if self.phase.mixing == "sum":
            return [(objective, objective.weight, step) for objective in self.phase.objectives]
        drawn = self._draw(np.arange(step + 1))
        index = int(drawn[-1])
        return [(self.phase.objectives[index], 1.0, int((drawn[:-1] == index).sum()))]

    def at(self, step: int) -> list[MicroStep]:
        """This rank's micro-steps of optimiser step `step`, in order; the same objectives on all ranks."""
        micro_steps = []
        for objective, weight, turn in self.objectives_at(step):
            if isinstance(objective, Contrast | CrossLingualContrast):
                cut = self._examples if objective.group is None else self._groups
                micro_steps += cut(objective, weight, turn)
            else:
                micro_steps += self._masked_lm(objective, weight, turn)
        return micro_steps

    def _draw(self, steps: np.ndarray) -> np.ndarray:
        uniform = hash_u64(self._key, steps).astype(np.float64) / 2.0**64
        return np.minimum(np.searchsorted(self._cumulative, uniform, side="right"), len(self._cumulative) - 1)

    def _masked_lm(
        self, objective: MaskedLM | TranslationLM | DenoisingAlignment, weight: float, turn: int
    ) -> list[MicroStep]:
        windows = objective.batch_tokens // self.phase.sequence_length
        share = windows // self.world_size
        first = turn * windows + self.rank * share
        factor = weight / (windows * self.targets_per_window)
        return [
            MicroStep(objective, first + done, min(self._micro_windows, share - done), factor)
            for done in range(0, share, self._micro_windows)
        ]

    def _groups(self, objective: Contrast | CrossLingualContrast, weight: float, turn: int) -> list[MicroStep]:
        assert objective.group is not None
        first, factor = turn * objective.pairs, weight / objective.examples
        groups, share = objective.pairs // objective.group, objective.share_of_group(objective.group, self.world_size)
        assert share is not None
        if share == objective.group:
            own = range(self.rank * groups // self.world_size, (self.rank + 1) * groups // self.world_size)
            return [MicroStep(objective, first + group * share, share, factor) for group in own]
        return [
            MicroStep(objective, first + group * objective.group + self.rank * share, share, factor)
            for group in range(groups)
        ]

    def _examples(self, objective: Contrast | CrossLingualContrast, weight: float, turn: int) -> list[MicroStep]:
        share = objective.examples // self.world_size
        first, together = turn * objective.examples + self.rank * share, objective.pairs_together
        at_once = max(1, self._micro_tokens // objective.longest)
        return [
            MicroStep(
                objective, together * (first + done), together * min(at_once, share - done), weight / objective.examples
            )
            for done in range(0, share, at_once)
        ]


def check_batches(phase: PhaseConfig, phase_name: str, world_size: int) -> None:
    """Every objective's batch must be cut evenly over the data-parallel ranks.

    Raises:
        UserError: naming each batch that is not, with the nearest one that is.
    """
    problems = undivided(phase, world_size)
    if problems:
        fitting = next((fewer for fewer in range(world_size - 1, 0, -1) if not undivided(phase, fewer)), None)
        instead = "" if fitting is None else f"; or let {counted(fitting, 'rank')} share it, not {world_size}"
        raise UserError(f"phases.{phase_name} does not divide: " + "; ".join(problems) + instead)
