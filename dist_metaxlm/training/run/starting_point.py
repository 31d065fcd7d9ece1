"""Starting points of a phase: fresh weights, an imported model, another phase, or its own checkpoint.

A starting point is used in this order:

1. `check`: before anything is loaded or written; except for a checkpoint also before the data are prepared.
2. `load`: weights into the module, before DeepSpeed builds the engine and rounds them to its precision.
3. `install`: state that only the engine holds (fp32 master weights, Adam state, loss scale), and the progress of the phase.
4. `describe` and `report`: text for the log and the run's folder.

Command line and recipe decide between the first three (`origin_of`); an intact checkpoint takes precedence
(`resumed_or`), and the ranks must have joined to determine it.
"""

from __future__ import annotations

from pathlib import Path

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.loss_scaling import restore_scaler
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import read_import
from dist_metaxlm.recipe.origins import source_of
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.checkpointing.checkpoint import (
    Checkpoint,
    checkpoint_to_resume,
    optimizer_of,
    restore,
    same_moments,
)
from dist_metaxlm.training.checkpointing.manifest import list_steps
from dist_metaxlm.training.engine.model import TrainedModel
from dist_metaxlm.training.loop.progress import Progress
from dist_metaxlm.training.run.before import Before, before_of, holds_phase
from dist_metaxlm.training.run.carry_over import Carried, CarryOverReport, carry_optimizer, carry_over, carry_own, describe
from dist_metaxlm.training.run.context import Options, RunContext
from dist_metaxlm.training.run.initial_weights import check_initial_weights, load_initial_weights
from dist_metaxlm.training.run.run_folder import PhaseFolder


class StartingPoint:
    """The base of all starting points; its methods do nothing, as a fresh start needs."""

    @property
    def schedule_offset(self) -> int:
        """Steps of the learning-rate schedule before the phase begins."""
        return 0

    @property
    def original(self) -> Path | None:
        """Folder with the files of an imported model that an export needs (interop/original.py), if there may be any."""
        return None

    @property
    def report(self) -> CarryOverReport | None:
        """Content of the phase's carry_over.json, after `load`; None if nothing is carried over."""
        return None

    def check(self) -> None:
        """Refuse an unusable starting point, before anything is loaded or written.

        Raises:
            UserError: naming what is missing or differs.
        """

    def load(self, model: TrainedModel, tokenizer_hash: str) -> None:
        """Put the weights into `model`, whose data were made with the tokenizer of `tokenizer_hash` (collective).

        Raises:
            UserError: when the weights are missing, or are those of another model or tokenizer.
        """

    def install(self, engine: Engine, progress: Progress) -> None:
        """Load the state that the module cannot hold into `engine`, the phase's progress into `progress` (collective)."""

    def describe(self) -> list[str]:
        """Lines for the log, after `load` and `install`."""
        return []


class Fresh(StartingPoint):
    """The random weights of the recipe's seed, with which the model is built."""


class Imported(StartingPoint):
    """A model that `metaxlm convert import` made (`--init_from`, or `from` of the phase)."""

    def __init__(self, recipe: Recipe, folder: PhaseFolder, resume: str, source: str) -> None:
        self._recipe, self._folder, self._resume, self._source = recipe, folder, resume, source
        self._line = ""

    @property
    def original(self) -> Path | None:
        """See `StartingPoint`."""
        return Path(self._source)

    def check(self) -> None:
        """See `StartingPoint`. A phase that has checkpoints to resume from no longer needs the imported model."""
        if self._resume == "never" or not list_steps(self._folder.checkpoints):
            check_initial_weights(self._recipe, self._source)

    def load(self, model: TrainedModel, tokenizer_hash: str) -> None:
        """See `StartingPoint`."""
        self._line = load_initial_weights(model.encoder, self._recipe, self._source, tokenizer_hash)

    def install(self, engine: Engine, progress: Progress) -> None:
        """See `StartingPoint`."""
        optimizer_state.set_exact_weights(engine, read_import(self._source)[1])

    def describe(self) -> list[str]:
        """See `StartingPoint`."""
        return [self._line]


class CarriedOver(StartingPoint):
    """A checkpoint of another phase, of the same run or another."""

    def __init__(self, recipe: Recipe, before: Before, begun: bool = False) -> None:
        """`begun`: the phase has checkpoints of its own and no longer needs that one."""
        self._recipe, self._before, self._begun = recipe, before, begun
        self._policy = recipe.carry_over_of(before.phase)
        self._carried: Carried | None = None

    @property
    def schedule_offset(self) -> int:
        """The steps of the schedule before if the phase continues it, else 0."""
        return 0 if self._policy.schedule == "restart" else self._before.steps_behind

    @property
    def original(self) -> Path | None:
        """See `StartingPoint`."""
        return self._before.folder.path

    @property
    def report(self) -> CarryOverReport | None:
        """See `StartingPoint`."""
        return None if self._carried is None else self._carried.report

    def check(self) -> None:
        """See `StartingPoint`."""
        if not self._begun:
            self._before.check()

    def load(self, model: TrainedModel, tokenizer_hash: str) -> None:
        """See `StartingPoint`."""
        self._carried = carry_over(model.encoder, self._recipe, self._before, self._policy, tokenizer_hash)
        carry_own(model, self._carried)

    def install(self, engine: Engine, progress: Progress) -> None:
        """See `StartingPoint`. Tokens that an earlier phase has seen count as seen."""
        assert self._carried is not None, "load comes before install"
        progress.seen |= ~self._carried.unseen.to(progress.seen.device)
        optimizer_state.set_exact_weights(engine, self._carried.weights)
        if self._policy.optimizer == "carry":
            carry_optimizer(engine, self._carried)

    def describe(self) -> list[str]:
        """See `StartingPoint`."""
        return [] if self._carried is None else describe(self._carried.report)


class Resumed(StartingPoint):
    """A checkpoint of the phase itself, saved in any layout."""

    def __init__(self, checkpoint: Checkpoint, context: RunContext, origin: StartingPoint) -> None:
        """`origin`: the phase's original starting point; its schedule applies to checkpoints that do not record theirs."""
        self._checkpoint, self._context, self._origin = checkpoint, context, origin

    @property
    def schedule_offset(self) -> int:
        """See `StartingPoint`."""
        return self._origin.schedule_offset

    def check(self) -> None:
        """See `StartingPoint`."""
        if "average" in self._checkpoint.facts:
            raise UserError(
                f"{self._checkpoint.folder} is an average of checkpoints and cannot be trained further; start another phase "
                f"from it with --from {self._context.folder.phase}"
            )
        trained, prepared = self._checkpoint.facts["tokenizer"], self._context.tokenizer.hash
        if trained != prepared:
            raise UserError(
                f"{self._checkpoint.folder} was trained with tokenizer {trained[:12]}, and the data in "
                f"{self._context.recipe.data.directory} have {prepared[:12]}; give the data.directory that the phase "
                "began with"
            )

    def load(self, model: TrainedModel, tokenizer_hash: str) -> None:
        """See `StartingPoint`."""
        model.encoder.load_logical(self._checkpoint.tensors("weights"))

    def install(self, engine: Engine, progress: Progress) -> None:
        """See `StartingPoint`."""
        restore(engine, self._checkpoint)
        progress.resume(self._checkpoint)
        restore_scaler(engine, self._checkpoint.facts.get("loss_scaling", {}))

    def describe(self) -> list[str]:
        """See `StartingPoint`."""
        lines = [f"resuming after step {self._checkpoint.step}"]
        before, now = optimizer_of(self._checkpoint), self._context.recipe.optimizer.name
        if before != now:
            dropped = (
                "its moments go on" if same_moments(before, now) else "the moments of the blocks' matrices start at zero"
            )
            lines.append(f"the optimizer was {before}, now {now}: {dropped}")
        return lines


def origin_of(recipe: Recipe, folder: PhaseFolder, options: Options) -> StartingPoint:
    """The starting point that command line and recipe select, if no checkpoint of the phase is resumed.

    Raises:
        UserError: if it is a folder that is missing or holds neither a phase nor an imported model.
    """
    if options.init_from is not None:
        return Imported(recipe, folder, options.resume, options.init_from)
    source = source_of(recipe, folder.phase)
    if source is None:
        return Fresh()
    begun = options.resume != "never" and bool(list_steps(folder.checkpoints))
    if source.folder is not None and not begun:
        path = Path(source.folder).expanduser()
        if not holds_phase(path):
            if source.mark is not None:
                raise UserError(f"{source}: {path} has no checkpoints; it is an imported model, which is named without @")
            return Imported(recipe, folder, options.resume, str(path))
    return CarriedOver(recipe, before_of(source, folder, options.recipe), begun)


def resumed_or(origin: StartingPoint, context: RunContext) -> StartingPoint:
    """The checkpoint that `--resume` selects, else `origin` (collective: the ranks agree on an intact one).

    Raises:
        UserError: if the selected checkpoint is not intact, or was trained with another tokenizer than the data's.
    """
    checkpoint = checkpoint_to_resume(context.folder.checkpoints, context.options.resume)
    if checkpoint is None:
        return origin
    resumed = Resumed(checkpoint, context, origin)
    resumed.check()
    return resumed
