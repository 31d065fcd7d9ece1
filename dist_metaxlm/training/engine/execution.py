"""How an optimiser step is carried out: its micro-steps one after another, or through the stages of a pipeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine, StageEngine
from dist_metaxlm.deepspeed_adapter.timers import drop_timer_records
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.training.engine.engine import set_learning_rate

See = Callable[[PackedBatch], None]


class Execution(Protocol):
    """Carries out steps."""

    def take(self, step: int, learning_rate: float) -> None:
        """Forward and backward passes of all micro-steps of `step`, then the update (collective)."""


class Accumulation:
    """The whole model on this rank (or its tensor group): micro-step after micro-step, gradients summed."""

    def __init__(self, engine: Engine, plan: StepPlan, batches: Iterator[PackedBatch], see: See, count: Any) -> None:
        self._engine, self._plan, self._batches, self._see, self._count = engine, plan, batches, see, count

    def take(self, step: int, learning_rate: float) -> None:
        """See `Execution`."""
        engine = self._engine
        engine.module.train()
        for micro in self._plan.at(step):
            batch = next(self._batches).to(engine.device)
            loss, losses, languages = engine(batch, micro.objective, step)
            # DeepSpeed averages gradients over data-parallel ranks; ours are shares of one global sum.
            engine.backward(loss * (micro.factor * self._plan.world_size), scale_wrt_gas=False)
            self._see(batch)
            self._count(micro.objective, batch, losses, languages)
        set_learning_rate(engine, learning_rate)
        engine.step()
        drop_timer_records(engine)
        engine.module.after_step()


class Pipeline:
    """A stage of the model on this rank: DeepSpeed runs the micro-steps through the stages (1F1B, arXiv 2104.04473)."""

    def __init__(self, engine: StageEngine, plan: StepPlan, batches: Iterator[PackedBatch], see: See, count: Any) -> None:
        self._engine, self._plan, self._batches, self._see, self._count = engine, plan, batches, see, count
        self._loaded: deque[PackedBatch] = deque()
        engine.module.share_tied()  # a restored checkpoint is in the first stage's copy

    def take(self, step: int, learning_rate: float) -> None:
        """See `Execution`. The first stage sees the batches, the last counts their losses."""
        engine, micro_steps = self._engine, self._plan.at(step)
        engine.module.begin(step, micro_steps, self._loaded, self._count)
        engine.micro_batches = len(micro_steps)  # of this step: objectives differ in theirs
        set_learning_rate(engine, learning_rate)
        engine.train_batch(self._load())
        drop_timer_records(engine)
        engine.module.share_tied()

    def _load(self) -> Iterator[Any]:
        """What DeepSpeed takes on the first and the last stage: (inputs of the first stage, nothing in place of labels)."""
        from dist_metaxlm.training.engine.pipeline import departing

        for batch in self._batches:
            if groups().stage == 0:
                self._see(batch)
            else:
                self._loaded.append(batch)
            yield departing(batch), None


def execution(engine: Engine, plan: StepPlan, batches: Iterator[PackedBatch], see: See, count: Any) -> Execution:
    """The way that fits the layout. `see(batch)` is called once for each micro-batch of this rank's share, and
    `count(objective, batch, losses, languages)` with its losses, on the stage that has them.
    """
    if groups().stages > 1:
        return Pipeline(cast(StageEngine, engine), plan, batches, see, count)
    return Accumulation(engine, plan, batches, see, count)
