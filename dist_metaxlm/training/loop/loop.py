"""The training loop."""

from __future__ import annotations

import logging
from typing import Any

import torch

from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.loss_scaling import scaler_state, step_figures
from dist_metaxlm.errors import GracefulStop, UserError
from dist_metaxlm.parallel.process_group import rank
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver
from dist_metaxlm.training.engine.execution import execution
from dist_metaxlm.training.loop.batches import batches
from dist_metaxlm.training.loop.console import ProgressLine
from dist_metaxlm.training.loop.heldout import HeldoutMeter
from dist_metaxlm.training.loop.metrics import Clock, LossMeter, MetricsWriter, asked_shares, asked_so_far, weighted_loss
from dist_metaxlm.training.loop.probing import Probing
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.loop.resilience import StopRequest
from dist_metaxlm.training.loop.schedule import learning_rate_at
from dist_metaxlm.training.run.context import RunContext

logger = logging.getLogger(__name__)


def train(engine: Engine, context: RunContext, plan: StepPlan, progress: Progress) -> None:
    """Run the phase of `context` from `progress.step` to its end; checkpoints and metrics go to its folder."""
    recipe, folder, data = context.recipe, context.folder, context.data
    phase, total, behind = plan.phase, plan.phase.total_steps, progress.schedule_offset
    meter = LossMeter(phase, data, engine.device)
    meter.restore(progress.counts)
    writer = MetricsWriter(folder.path, progress.step) if rank() == 0 else None
    clock, tokens_before = Clock(progress.seconds), progress.tokens
    stop = StopRequest(progress.step, recipe.training.log_interval)
    read = clock.waiting_for(batches(plan, data, progress.step, total, engine.device))
    steps = execution(engine, plan, read, progress.see, meter.add)
    probing = Probing(engine, recipe.training.probe_interval, context.probe)
    heldout = HeldoutMeter(engine, recipe.training.heldout_interval, context.heldout)
    saver = CheckpointSaver(
        folder.checkpoints,
        engine,
        recipe.training.keep_checkpoints,
        recipe.training.save_in_background,
        recipe.training.keep_best,
    )
    with saver, ProgressLine(folder.phase, total, progress.step, shown=rank() == 0) as line:
        for step in range(progress.step, total):
            learning_rate = learning_rate_at(step + behind, total + behind, phase.learning_rate)
            steps.run(step, learning_rate)
            progress.advance(phase, plan.objectives_at(step))

            last = step + 1 == total
            stopping = stop.agreed(step + 1) and not last
            if last or (step + 1) % recipe.training.log_interval == 0:
                measured = probing.at(step + 1, last) | heldout.at(step + 1, last)
                rate, progress.seconds, waited = clock.read(progress.tokens - tokens_before)
                tokens_before = progress.tokens
                speed = {"tokens_per_second": rate, "data_wait_share": waited}
                record = interval_record(engine, context, meter, progress, learning_rate, speed) | measured
                line.show(record)
                if writer:
                    writer.write(record)
                saver.check(engine.device)
            if last or stopping or (step + 1) % recipe.training.checkpoint_interval == 0:
                progress.seconds = clock.seconds()
                progress.counts, progress.scaling = meter.counts(), scaler_state(engine)
                saver.save(progress.facts() | heldout.facts(progress.step), progress.tensors())
                logger.debug("saving the checkpoint of step %d", progress.step)
            if stopping:
                raise GracefulStop(
                    f"phase {folder.phase} stopped after step {step + 1} of {total} and saved; "
                    "run the same command again to resume"
                )
    stop.restore()
    if writer:
        writer.close()


def interval_record(
    engine: Engine, context: RunContext, meter: LossMeter, progress: Progress, learning_rate: float, speed: dict[str, float]
) -> dict[str, Any]:
    """The metrics of a log interval, with one device-to-host copy.

    Raises:
        UserError: if a loss is not finite, before a checkpoint is saved, or fp16 training cannot continue.
    """
    read, phase, data = meter.read(), context.phase, context.data
    loss = weighted_loss(read["losses"], phase)
    record = {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": loss,
        **read,
        "learning_rate": learning_rate,
        **step_figures(engine),
        **speed,
        "seconds": progress.seconds,
        "asked": asked_shares(phase, data, progress.tokens),
        "asked_so_far": asked_so_far(data, read["realised"]),
    }
    if not torch.isfinite(torch.tensor(loss)):
        raise UserError(
            f"the loss is {loss} at step {progress.step}; lower phases.*.learning_rate.peak or raise "
            "warmup_steps, and resume from an earlier checkpoint: --change --resume STEP"
        )
    return record
