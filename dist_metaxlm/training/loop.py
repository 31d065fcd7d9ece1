"""The training loop."""

from __future__ import annotations

from typing import Any

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.prefetch import prefetch
from dist_metaxlm.errors import StoppedInGoodOrder
from dist_metaxlm.parallel.process_group import rank
from dist_metaxlm.recipe.schema import PhaseConfig, Recipe
from dist_metaxlm.training.console import ProgressLine
from dist_metaxlm.training.engine import set_learning_rate
from dist_metaxlm.training.metrics import (
    Clock,
    LossMeter,
    MetricsWriter,
    asked_shares,
    asked_so_far,
    sample_languages,
    weighted_loss,
)
from dist_metaxlm.training.progress import Progress
from dist_metaxlm.training.resilience import StopRequest
from dist_metaxlm.training.run_folder import PhaseFolder
from dist_metaxlm.training.saving import CheckpointSaver
from dist_metaxlm.training.schedule import learning_rate_at
from dist_metaxlm.training.steps import MicroStep, StepPlan

PREFETCHED = 4
"""Micro-batches assembled ahead of the model."""


def train(engine: Any, recipe: Recipe, folder: PhaseFolder, data: PhaseData, plan: StepPlan, progress: Progress,
          schedule_offset: int = 0) -> None:
    """Run the phase from `progress.step` to its end; checkpoints and metrics go to `folder`.

    `schedule_offset` steps are added for the learning rate, when it goes on from an earlier phase.
    """
    phase, total = plan.phase, plan.phase.total_steps
    meter = LossMeter(phase, data, engine.device)
    if progress.realised is not None:
        meter.restore(progress.realised)
    writer = MetricsWriter(folder.path, progress.step) if rank() == 0 else None
    clock, tokens_before = Clock(progress.seconds), progress.tokens
    stop = StopRequest()
    batches = clock.waiting_for(prefetch(micro_batches(plan, data, progress.step, total, engine.device), PREFETCHED))
    saver = CheckpointSaver(folder.checkpoints, engine, recipe.training.keep_checkpoints,
                            recipe.training.save_in_background)
    with saver, ProgressLine(folder.phase, total, progress.step, shown=rank() == 0) as line:
        for step in range(progress.step, total):
            engine.module.train()
            for micro in plan.at(step):
                batch = next(batches).to(engine.device)
                loss, losses, languages = engine(batch, micro.objective, step)
                # DeepSpeed averages gradients over data-parallel ranks; ours are shares of one global sum.
                engine.backward(loss * (micro.factor * plan.world_size), scale_wrt_gas=False)
                meter.add(micro.objective.name, losses, languages, sample_languages(batch, micro.objective))
                progress.see(batch)
            learning_rate = learning_rate_at(step + schedule_offset, total + schedule_offset, phase.learning_rate)
            set_learning_rate(engine, learning_rate)
            engine.step()
            progress.advance(phase, plan.objectives_at(step))

            last, stopping = step + 1 == total, False
            if last or (step + 1) % recipe.training.log_interval == 0:
                rate, progress.seconds, waited = clock.read(progress.tokens - tokens_before)
                tokens_before = progress.tokens
                speed = {"tokens_per_second": rate, "data_wait_share": waited}
                record = interval_record(engine, phase, data, meter, progress, learning_rate, speed)
                line.show(record)
                if writer:
                    writer.write(record)
                stopping = stop.agreed(engine.device) and not last
                saver.check(engine.device)
            if last or stopping or (step + 1) % recipe.training.checkpoint_interval == 0:
                progress.realised = meter.realised()
                saver.save(progress.facts(), progress.tensors())
            if stopping:
                raise StoppedInGoodOrder(f"phase {folder.phase} stopped after step {step + 1} of {total} and saved; "
                                         "run the same command again to go on")
    stop.restore()
    if writer:
        writer.close()


def micro_batches(plan: StepPlan, data: PhaseData, first_step: int, total: int, device: torch.device) -> Any:
    """The remaining micro-batches of this rank, as functions that build them: a prefetch thread calls these ahead.

    For a CUDA device they lie in pinned memory, from which the copy to the device does not hold up the host.
    """
    def build(micro: MicroStep) -> PackedBatch:
        batch = data.batch(micro.objective, micro.first, micro.count)
        return batch.pinned() if device.type == "cuda" else batch

    return ((lambda micro=micro: build(micro)) for step in range(first_step, total) for micro in plan.at(step))


def interval_record(engine: Any, phase: PhaseConfig, data: PhaseData, meter: LossMeter, progress: Progress,
                    learning_rate: float, speed: dict[str, float]) -> dict[str, Any]:
    """The metrics of a log interval; this reads from the device, once.

    Raises:
        FloatingPointError: when a loss is not finite, before it can be saved as a checkpoint.
    """
    read = meter.read()
    loss = weighted_loss(read["losses"], phase)
    norm = engine.get_global_grad_norm()
    record = {"step": progress.step, "tokens": progress.tokens, "loss": loss, **read, "learning_rate": learning_rate,
              "grad_norm": float(norm) if norm is not None else 0.0, **speed,
              "seconds": progress.seconds, "asked": asked_shares(phase, data, progress.tokens),
              "asked_so_far": asked_so_far(data, read["realised"])}
    if not torch.isfinite(torch.tensor(loss)):
        raise FloatingPointError(f"the loss is {loss} at step {progress.step}; lower phases.*.learning_rate.peak or raise "
                                 "warmup_steps, and run the phase again: it resumes from the last checkpoint")
    return record


