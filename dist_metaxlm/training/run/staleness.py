"""Checks whether a phase started from the current end of the one before, which may be lengthened or retrained later."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterable
from pathlib import Path

from dist_metaxlm.invocation import as_typed
from dist_metaxlm.training.checkpointing.manifest import list_steps, step_folder, weights_digest
from dist_metaxlm.training.run.run_folder import PhaseFolder

logger = logging.getLogger(__name__)


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
