"""Runs an optimiser step: its micro-steps one after another, or through the stages of a pipeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine, StageEngine
from dist_metaxlm.deepspeed_adapter.timers import drop_timer_records
from dist_metaxlm.liveness import operations
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.recipe.schema import Objective
from dist_metaxlm.training.engine.engine import set_learning_rate
from dist_metaxlm.training.engine.micro_step_loss import guard_loss

OnBatch = Callable[[PackedBatch], None]
OnLosses = Callable[[Objective, PackedBatch, torch.Tensor, torch.Tensor], None]
"""(objective, batch, its losses [N], their languages [N])."""


class StepRunner(Protocol):
    """Runs optimiser steps."""

    def run(self, step: int, learning_rate: float) -> None:
        """Forward and backward passes of all micro-steps of `step`, then the update (collective)."""


class Accumulation:
    """The whole model on this rank (or its tensor group): micro-step after micro-step, gradients summed."""

    def __init__(
        self, engine: Engine, plan: StepPlan, batches: Iterator[PackedBatch], on_batch: OnBatch, on_losses: OnLosses
    ) -> None:
        self._engine, self._plan, self._batches, self._on_batch, self._on_losses = engine, plan, batches, on_batch, on_losses

    def run(self, step: int, learning_rate: float) -> None:
        """See `StepRunner`."""
        engine = self._engine
        engine.module.train()
        for micro in self._plan.at(step):
            operations.enter(operations.READING)
            batch = next(self._batches).to(engine.device)
            operations.enter(operations.FORWARD)
            loss, losses, languages = engine(batch, micro.objective, step)
            loss, losses = guard_loss(loss, losses, step)
            operations.enter(operations.BACKWARD)
            # DeepSpeed averages gradients over data-parallel ranks; ours are shares of one global sum.
            engine.backward(loss * (micro.factor * self._plan.world_size), scale_wrt_gas=False)
            self._on_batch(batch)
            self._on_losses(micro.objective, batch, losses, languages)
        operations.enter(operations.UPDATING)
        set_learning_rate(engine, learning_rate)
        engine.step()
        drop_timer_records(engine)
        engine.module.after_step()


class Pipeline:
    """A stage of the model on this rank: DeepSpeed runs the micro-steps through the stages (1F1B, arXiv 2104.04473)."""

    def __init__(
        self, engine: StageEngine, plan: StepPlan, batches: Iterator[PackedBatch], on_batch: OnBatch, on_losses: OnLosses
    ) -> None:
        self._engine, self._plan, self._batches, self._on_batch, self._on_losses = engine, plan, batches, on_batch, on_losses
        self._loaded: deque[PackedBatch] = deque()
        engine.module.share_tied()  # a restored checkpoint is only in the first stage's copy

    def run(self, step: int, learning_rate: float) -> None:
        """See `StepRunner`. The first stage counts the batches, the last their losses."""
        engine, micro_steps = self._engine, self._plan.at(step)
        operations.enter(operations.PIPELINE)
        engine.module.begin(step, micro_steps, self._loaded, self._on_losses)
        engine.micro_batches = len(micro_steps)  # of this step; the number differs by objective
        set_learning_rate(engine, learning_rate)
        engine.train_batch(self._load())
        drop_timer_records(engine)
        engine.module.share_tied()

    def _load(self) -> Iterator[tuple[tuple[torch.Tensor, ...], None]]:
        """DeepSpeed's input on the first and the last stage: (inputs of the first stage, no labels)."""
        from dist_metaxlm.training.engine.pipeline import first_stage_inputs

        operations.enter(operations.READING)
        for batch in self._batches:
            operations.enter(operations.PIPELINE)
            if groups().stage == 0:
                self._on_batch(batch)
            else:
                self._loaded.append(batch)
            yield first_stage_inputs(batch), None
            operations.enter(operations.READING)


def execution(
    engine: Engine, plan: StepPlan, batches: Iterator[PackedBatch], on_batch: OnBatch, on_losses: OnLosses
) -> StepRunner:
    """The step runner for the layout. `on_batch(batch)` is called once for each micro-batch of this rank's share, and
    `on_losses(objective, batch, losses, languages)` with its losses, on the stage that has them.
    """
    if groups().stages > 1:
        return Pipeline(cast(StageEngine, engine), plan, batches, on_batch, on_losses)
    return Accumulation(engine, plan, batches, on_batch, on_losses)
