"""The phase that another continues from: its checkpoint, whether it can be used, and whether it has changed since."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import as_typed
from dist_metaxlm.recipe.origins import Source
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.checkpointing.manifest import best_step, list_steps, read_facts, step_folder, weights_digest
from dist_metaxlm.training.run.run_folder import PhaseFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Before:
    """The phase before, in this run or another."""

    folder: PhaseFolder
    """Its folder."""
    mark: str | None
    """Its checkpoint: a step, `best`, or None for the newest of the finished phase."""
    same_run: bool
    """Whether it is a phase of the run that continues."""
    phase: str
    """The phase that continues, and `recipe`, the name of its recipe, for messages."""
    recipe: str

    @property
    def step(self) -> int | None:
        """The step of the checkpoint; None: the newest, or no checkpoint has a held-out loss."""
        if self.mark is None:
            return None
        best = best_step(self.folder.checkpoints) if self.mark == "best" else (int(self.mark), 0.0)
        return None if best is None else best[0]

    @property
    def of_step(self) -> str:
        """The step in words, for messages."""
        return "" if self.step is None else f" of step {self.step}"

    @property
    def steps_behind(self) -> int:
        """Steps of the learning-rate schedule up to that checkpoint; 0 if it is gone."""
        finished = self.folder.finished
        step = self.step if self.mark is not None else int(finished["steps"]) if finished else None
        if step is None:
            return 0
        facts = read_facts(step_folder(self.folder.checkpoints, step))
        return step + (int(facts.get("schedule_offset", 0)) if facts else 0)

    def check(self) -> None:
        """Refuse a phase that cannot be continued from.

        Raises:
            UserError: if it is missing, unfinished without a named checkpoint, or lacks the named one.
        """
        if self.mark is None:
            if self.folder.finished is None:
                raise UserError(self._unfinished())
            return
        steps = list_steps(self.folder.checkpoints)
        known = f"it has those of {pluralize(len(steps), 'step')}: {', '.join(map(str, steps))}" if steps else "it has none"
        if self.step is None:
            raise UserError(
                f"phase {self.phase} continues from the best checkpoint of {self.folder.path}, and none has a held-out "
                "loss; train that phase with training.heldout_interval and training.keep_best=true, or name a step"
            )
        if self.step not in steps:
            raise UserError(
                f"phase {self.phase} continues from step {self.step} of {self.folder.path}, which has no such checkpoint "
                f"({known}); name an existing one with --from {self._place}@STEP, or train phase {self.folder.phase} to "
                "that step"
            )

    @property
    def _place(self) -> str:
        return self.folder.phase if self.same_run else str(self.folder.path)

    def _unfinished(self) -> str:
        steps = list_steps(self.folder.checkpoints)
        state = "an unfinished one" if self.folder.path.exists() else "none"
        recipe = "" if self.recipe == "quickstart" else f" --recipe {shlex.quote(self.recipe)}"
        command = f"metaxlm pretrain --phase {self.folder.phase}{recipe} --run_dir {shlex.quote(str(self.folder.run_dir))}"
        branch = f"continue from its step {steps[-1]} with --from {self._place}@{steps[-1]}, " if steps else ""
        return (
            f"--phase {self.phase} continues from a finished {self.folder.phase} phase, and {self.folder.path} holds "
            f"{state}; run `{command}` first, {branch}or give --init_from an imported model"
        )


def before_of(source: Source, folder: PhaseFolder, recipe: str) -> Before:
    """The phase that `source` names, for the phase of `folder`.

    Raises:
        UserError: if `source` is the folder of the phase itself.
    """
    if source.phase is not None:
        before = PhaseFolder(folder.run_dir, source.phase)
        return Before(folder=before, mark=source.mark, same_run=True, phase=folder.phase, recipe=recipe)
    path = Path(source.folder or "").expanduser()
    before = PhaseFolder(path.parent, path.name)
    if path.resolve() == folder.path.resolve():
        raise UserError(
            f"phase {folder.phase} would continue from itself ({path}); give another phase, or another --run_dir"
        )
    same = path.parent.resolve() == folder.run_dir.resolve()
    return Before(folder=before, mark=source.mark, same_run=same, phase=folder.phase, recipe=recipe)


def holds_phase(path: Path) -> bool:
    """Whether a folder is that of a phase (and not an imported model).

    Raises:
        UserError: if it is missing, or the folder of a whole run.
    """
    if not path.is_dir():
        raise UserError(f"the phase continues from {path}, and there is no such folder; correct the path, or give a phase")
    if (path / "checkpoints").is_dir():
        return True
    phases = sorted(child.parent.name for child in path.glob("*/checkpoints") if child.is_dir())
    if phases:
        raise UserError(f"{path} is the folder of a run; name one of its phases, such as {path / phases[0]}")
    return False


def stale_phases(run_dir: str | Path) -> dict[str, str]:
    """Phase of a run -> how the phase that it started from has changed since; empty if nothing has.

    Phases that started from something outside of the run are not in it.
    """
    reports = sorted(Path(run_dir).glob("*/carry_over.json"))
    changes = {path.parent.name: _change(Path(run_dir), path) for path in reports if "-until-" not in path.parent.name}
    return {phase: change for phase, change in changes.items() if change is not None}


def _change(run_dir: Path, report: Path) -> str | None:
    try:
        began = json.loads(report.read_text(encoding="utf-8"))
        step, digest, before = int(began["step"]), began.get("weights_digest"), began.get("phase", "meta")
        pinned = bool(began.get("pinned"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    steps = list_steps((source := PhaseFolder(run_dir, before)).checkpoints) if isinstance(before, str) else []
    if not steps or (pinned and step not in steps):
        return None
    phase = report.parent.name
    if not pinned and steps[-1] != step:
        return f"{phase} of {run_dir} began with {before}'s step {step}, and {before} is now at step {steps[-1]}"
    if digest not in (None, weights_digest(step_folder(source.checkpoints, step))):
        began_with = f"{phase} of {run_dir} began with {before}'s step {step}"
        return f"{began_with}, which has been trained again since and has other weights"
    return None


def warn_of_stale_phases(run_dir: str | Path, recipe: str, overrides: Iterable[str]) -> None:
    """For each phase that `stale_phases` names, log a warning with the command that trains it again."""
    for phase, change in stale_phases(run_dir).items():
        words = [
            "metaxlm",
            "pretrain",
            "--phase",
            phase,
            "--resume",
            "never",
            *([] if recipe == "quickstart" else ["--recipe", recipe]),
            "--run_dir",
            str(run_dir),
            *overrides,
        ]
        remedy = as_typed(f"`{shlex.join(words)}` trains {phase} again from there and keeps the old one in a renamed folder")
        logger.warning(f"{change}; {remedy}")
