"""Weights & Biases (package `wandb`), configured by its own variables: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, ...

Source of the calls: https://docs.wandb.ai/ref/python/ (init, Run.log, Run.finish).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.tracking.tracker import TrackedPhase

PROJECT = "dist_metaxlm"
"""Project without WANDB_PROJECT."""


class WeightsAndBiases:
    """One run of Weights & Biases for a phase, grouped by the recipe's name; see `Tracker`."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, phase: TrackedPhase) -> None:
        """See `Tracker`. A resumed phase goes on under the id in its folder's wandb.json."""
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                group=phase.run,
                job_type=phase.phase,
                name=os.environ.get("WANDB_NAME", f"{phase.run}-{phase.phase}"),
                id=os.environ.get("WANDB_RUN_ID") or kept_id(phase.folder / "wandb.json"),
                resume="allow",
                dir=str(phase.folder),
                config={**phase.settings, **{f"environment.{key}": value for key, value in phase.environment.items()}},
                settings=wandb.Settings(console="off"),  # it would capture the streams that a launcher reads
            )
        except Exception as error:  # not logged in, unreachable, refused: classes differ between versions
            reason = " ".join(str(error).split())
            raise UserError(
                f"training.trackers: wandb cannot start ({reason}); log in with `wandb login`, or set WANDB_MODE=offline "
                "and upload later with `wandb sync`, or take wandb out of training.trackers"
            ) from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`. Steps that the run already has are ignored by Weights & Biases; a resumed phase repeats them."""
        self._run.log(dict(figures), step=step)

    def finish(self, completed: bool) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._run.finish(exit_code=0 if completed else 1)


def kept_id(path: Path) -> str:
    """The id in a tracker's file of a phase's folder; without the file a new one is drawn and kept there."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        drawn = uuid.uuid4().hex[:12]
        write_text(path, json.dumps({"id": drawn}) + "\n")
        return drawn
