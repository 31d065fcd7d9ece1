"""The training loop."""

from __future__ import annotations

from functools import partial

from dist_metaxlm.data.steps import StepPlan
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.loss_scaling import scaler_state, step_figures
from dist_metaxlm.errors import GracefulStop
from dist_metaxlm.liveness import operations
from dist_metaxlm.parallel.process_group import largest, rank
from dist_metaxlm.recipe.origins import branch_steps
from dist_metaxlm.reporting.records import IntervalRecord, Pace, Record
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver
from dist_metaxlm.training.engine.execution import execution
from dist_metaxlm.training.loop.batches import batches
from dist_metaxlm.training.loop.console import ProgressLine
from dist_metaxlm.training.loop.guard_log import GuardLog
from dist_metaxlm.training.loop.guards import StepGuards
from dist_metaxlm.training.loop.heldout import HeldoutMeter
from dist_metaxlm.training.loop.metrics import Clock, LossMeter, asked_shares, asked_so_far, metrics_writer, weighted_loss
from dist_metaxlm.training.loop.pace import PaceMeter, SlowRankMeter
from dist_metaxlm.training.loop.probing import Probing
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.loop.replicas import ReplicaGuard
from dist_metaxlm.training.loop.resilience import StopRequest
from dist_metaxlm.training.loop.schedule import learning_rate_at
from dist_metaxlm.training.run.context import RunContext


def train(engine: Engine, context: RunContext, plan: StepPlan, progress: Progress, log: GuardLog) -> None:
    """Run the phase of `context` from `progress.step` to its end; checkpoints and metrics go to its folder.

    Raises:
        RollBack: on all ranks, if bad steps in a row or weights that are not finite require an earlier checkpoint.
    """
    recipe, folder = context.recipe, context.folder
    phase, total, behind = plan.phase, plan.phase.total_steps, progress.schedule_offset
    metrics = metrics_writer(context, progress)  # before the clock: a tracker may be slow
    meter = LossMeter(phase, context.data, engine.device)
    meter.restore(progress.counts)
    clock = Clock(progress.seconds)
    pace = PaceMeter(clock, recipe.model, phase, progress, engine.device)
    stop = StopRequest(progress.step, recipe.training.log_interval)
    guards = StepGuards(recipe.training.guards, engine, plan, meter, log, progress.step, progress.guards)
    replicas = ReplicaGuard(engine, recipe.training.guards.replica_interval)
    over, branches = log.stepped_over(progress.step), branch_steps(recipe, folder.phase)
    read = clock.waiting_for(batches(plan, context.data, progress.step, total, engine.device, over))
    steps = execution(engine, plan, read, progress.see, meter.add)
    probing = Probing(engine, recipe.training.probe_interval, context.probe)
    heldout = HeldoutMeter(engine, recipe.training.heldout_interval, context.heldout)
    saver, slow = checkpoint_saver(engine, context), SlowRankMeter()
    with stop, metrics as writer, saver, ProgressLine(folder.phase, total, progress.step, shown=rank() == 0) as line:
        for step in range(progress.step, total):
            operations.begin_step(step + 1)
            learning_rate = learning_rate_at(step + behind, total + behind, phase.learning_rate)
            objectives = plan.objectives_at(step)
            if step + 1 in over:
                guards.step_over()
            else:
                guards.run(step, objectives, partial(steps.run, step, learning_rate))
                pace.add(objectives)
            progress.advance(phase, objectives)
            line.advance(progress.step)

            last = step + 1 == total
            operations.enter(operations.COLLECTIVE)
            stopping = stop.agreed(step + 1) and not last
            if not stopping:
                guards.check(step + 1)
            saving = last or stopping or (step + 1) % recipe.training.checkpoint_interval == 0 or step + 1 in branches
            replicas.check(step + 1, saving)
            if last or (step + 1) % recipe.training.log_interval == 0:
                operations.enter(operations.EVALUATING)
                measured = probing.at(step + 1, last) | heldout.at(step + 1, last)
                operations.enter(operations.COLLECTIVE)
                more: Pace = {"guards": guards.figures(), **pace.read(progress)}
                more["slow_rank"] = slow.read(engine.device)
                record: Record = {**interval_record(engine, context, meter, progress, learning_rate, more), **measured}
                line.show(record)
                if writer:
                    writer.write(record)
                check_threads(engine, context, saver)
            if saving:
                operations.enter(operations.SAVING)
                progress.seconds = clock.seconds()
                progress.counts, progress.scaling, progress.guards = meter.counts(), scaler_state(engine), guards.state()
                saver.save(progress.facts() | heldout.facts(progress.step), progress.tensors())
            if stopping:
                raise stopped(folder.phase, step + 1, total)


def stopped(phase: str, step: int, total: int) -> GracefulStop:
    """The end of a phase that was asked to stop after `step` of `total` steps."""
    return GracefulStop(
        f"phase {phase} stopped after step {step} of {total} and saved; run the same command again to resume"
    )


def check_threads(engine: Engine, context: RunContext, saver: CheckpointSaver) -> None:
    """Raise on all ranks what the threads of any rank met that save checkpoints and check the store (collective)."""
    saver.check(engine.device)
    if context.store_check:
        context.store_check.refuse(partial(largest, device=engine.device))


def checkpoint_saver(engine: Engine, context: RunContext) -> CheckpointSaver:
    """Writes the checkpoints of the phase, as long as this job holds the run folder's lease."""
    training = context.recipe.training
    saver = CheckpointSaver(
        context.folder.checkpoints,
        engine,
        training.keep_checkpoints,
        training.save_in_background,
        training.keep_best,
        branch_steps(context.recipe, context.folder.phase),
    )
    saver.may_commit = context.lease.check if context.lease else saver.may_commit
    return saver


def interval_record(
    engine: Engine, context: RunContext, meter: LossMeter, progress: Progress, learning_rate: float, more: Pace
) -> IntervalRecord:
    """The metrics of a log interval, with one device-to-host copy.

    Raises:
        UserError: if fp16 training cannot continue.
    """
    read, phase, data = meter.read(), context.phase, context.data
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": weighted_loss(read["losses"], phase),
        **read,
        "learning_rate": learning_rate,
        **step_figures(engine),
        **more,
        "seconds": progress.seconds,
        "asked": asked_shares(phase, data, progress.tokens),
        "asked_so_far": asked_so_far(data, read["realised"]),
    }
