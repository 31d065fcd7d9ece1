"""The samples of a phase's stages: sample numbers count through the phase, whatever batches and lengths change in it."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from dist_metaxlm.data.sampling.permutation import hash_u64, key
from dist_metaxlm.recipe.objectives.base import Share
from dist_metaxlm.recipe.schema import Objective, PhaseConfig
from dist_metaxlm.recipe.stages import stages


class StagedSamples:
    """For each objective of a phase: which steps it is part of, and which samples they take."""

    def __init__(self, phase: PhaseConfig, phase_name: str, seed: int) -> None:
        self.phase, self.stages = phase, stages(phase)
        self._key = key(seed, phase_name, "objective")
        weights = np.cumsum([objective.weight for objective in phase.objectives])
        self._cumulative = weights / weights[-1]
        self._first_steps = [stage.first_step for stage in self.stages]
        self._turns: dict[str, list[int]] = {}
        self._samples: dict[str, list[int]] = {}
        for number, objective in enumerate(phase.objectives):
            turns = [self._turns_before(step, number) for step in self._first_steps]
            samples = [0]
            for place, stage in enumerate(self.stages[:-1]):
                size = stage.phase.objectives[number].samples_per_step(stage.phase.sequence_length)
                samples.append(samples[-1] + (turns[place + 1] - turns[place]) * size)
            self._turns[objective.name], self._samples[objective.name] = turns, samples

    def stage_of(self, step: int) -> int:
        """Number of the stage of a step."""
        return bisect_right(self._first_steps, step) - 1

    def stage_of_sample(self, objective: str, sample: int) -> int:
        """Number of the stage that takes a sample of an objective."""
        return bisect_right(self._samples[objective], sample) - 1

    def objectives_at(self, step: int) -> list[tuple[Objective, float, int]]:
        """(objective, weight in this step's loss, number of earlier steps with the objective)."""
        objectives = self.stages[self.stage_of(step)].phase.objectives
        if self.phase.mixing == "sum":
            return [(objective, objective.weight, step) for objective in objectives]
        drawn = self._draw(np.arange(step + 1))
        index = int(drawn[-1])
        return [(objectives[index], 1.0, int((drawn[:-1] == index).sum()))]

    def cut(self, objective: Objective, turn: int, rank: int, ranks: int, micro_batch_tokens: int) -> list[range]:
        """Samples of each micro-step of one rank in the step with `turn` earlier steps of the objective."""
        turns = self._turns[objective.name]
        stage = bisect_right(turns, turn) - 1
        share = Share(rank, ranks, self.stages[stage].phase.sequence_length, micro_batch_tokens)
        before = self._samples[objective.name][stage]
        return [range(before + r.start, before + r.stop) for r in objective.cut(turn - turns[stage], share)]

    def _turns_before(self, step: int, objective: int) -> int:
        """Steps before `step` with the objective of this number."""
        if self.phase.mixing == "sum" or step == 0:
            return step
        return int((self._draw(np.arange(step)) == objective).sum())

    def _draw(self, steps: np.ndarray) -> np.ndarray:
        uniform = hash_u64(self._key, steps).astype(np.float64) / 2.0**64
        return np.minimum(np.searchsorted(self._cumulative, uniform, side="right"), len(self._cumulative) - 1)
