"""State changes of a phase's folder: already finished, started or resumed by this run, finished by it."""

from __future__ import annotations

import logging

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.metrics import read_metrics
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.checkpointing.manifest import best_step, list_steps, write_json
from dist_metaxlm.training.loop.guard_log import NAME as LOG_NAME
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run.before import warn_of_stale_phases
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.initial_weights import keep_import
from dist_metaxlm.training.run.run_folder import PhaseFolder
from dist_metaxlm.training.run.starting_point import StartingPoint

logger = logging.getLogger(__name__)


def is_finished(recipe: Recipe, options: Options, folder: PhaseFolder) -> bool:
    """Whether the phase is finished and the command line requests no more: no `--resume`, no longer phase.

    Raises:
        UserError: if `--change` requests to continue a phase that has no more steps.
    """
    if folder.finished is None or options.resume != "auto":
        return False
    steps, wanted = folder.finished["steps"], recipe.phase(options.phase).total_steps
    if options.change and wanted <= steps:
        raise UserError(
            f"phase {options.phase} of {folder.run_dir} is already finished after {pluralize(steps, 'step')}, and the "
            f"recipe has {wanted}; to train it further with --change, set more steps, such as "
            f"phases.{options.phase}.steps={2 * steps}"
        )
    return not options.change


def report_finished(recipe: Recipe, options: Options, folder: PhaseFolder) -> None:
    """Record the recipe of a finished phase and log that it is finished. First rank only.

    Raises:
        UserError: if the recipe differs from the one that the phase was trained with.
    """
    assert folder.finished is not None
    folder.start(recipe)
    steps, loss = pluralize(folder.finished["steps"], "step"), folder.finished["loss"]
    logger.info(
        f"phase {options.phase} of {folder.run_dir} is already finished ({steps}, loss {loss:.3f}). "
        "To retrain from scratch, pass `--resume never`."
    )
    warn_of_stale_phases(folder.run_dir, options.recipe, options.overrides)


def check_recipe(recipe: Recipe, options: Options, folder: PhaseFolder) -> None:
    """Refuse a recipe that does not match the folder, before a checkpoint is read, which takes longer.

    Raises:
        UserError: naming the fields that differ.
    """
    if options.resume != "never":
        step = int(options.resume) if options.resume.isdecimal() else max([0, *list_steps(folder.checkpoints)])
        folder.check(recipe, step, options.change)


def begin(context: RunContext, start: StartingPoint, step: int) -> None:
    """Commit the recipe to the folder from `step` on. First rank only.

    This cannot be undone: call it only after everything that can be refused has been checked.
    """
    options, folder = context.options, context.folder
    if options.resume == "never":
        folder.set_aside()
    for field, (before, now) in folder.start(context.recipe, step, options.change).items():
        logger.info(f"changed from step {step} on: {field} was {before}, now {now}")
    if options.resume.isdecimal():
        for line in folder.go_back(step):
            logger.info(line)
    keep_import(folder, step, start.original)
    folder.cut_metrics(step)
    if start.report is not None:
        write_json(folder.path / "carry_over.json", start.report)


def finish(context: RunContext, progress: Progress) -> None:
    """Mark the phase as finished with its last logged loss. First rank only.

    Raises:
        UserError: if no step of the phase made an update.
    """
    folder, options = context.folder, context.options
    last = next((record for record in reversed(read_metrics(folder.metrics)) if record["loss"] is not None), None)
    if last is None:
        raise UserError(
            f"no step of phase {folder.phase} had a finite loss and gradient (see {folder.path / LOG_NAME}); lower "
            f"phases.{folder.phase}.learning_rate.peak and start from scratch with --resume never"
        )
    folder.finish(
        {
            "steps": progress.step,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "loss": last["loss"],
            "losses": last["losses"],
            "ranks": context.topology.world_size,
        }
    )
    logger.info(
        f"phase {folder.phase} finished: {pluralize(progress.step, 'step')}, {progress.tokens:,} tokens, "
        f"{progress.seconds:.0f} s, loss {last['loss']:.3f}; checkpoint in {folder.checkpoints}"
    )
    best = best_step(folder.checkpoints) if context.recipe.training.keep_best else None
    if best is not None:
        logger.info(
            f"best held-out loss: {best[1]:.3f} bits per byte at step {best[0]}; evaluate or export that checkpoint with "
            f"--phase {folder.phase}@best"
        )
    warn_of_stale_phases(folder.run_dir, options.recipe, options.overrides)
