"""MLflow (package `mlflow` or `mlflow-skinny`), configured by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.

Source of the calls: https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html (MlflowClient).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.tracking.tracker import TrackedPhase

EXPERIMENT = "dist_metaxlm"
"""Experiment without MLFLOW_EXPERIMENT_NAME."""
_AT_ONCE = 100
"""Parameters that a request may have; https://mlflow.org/docs/latest/rest-api.html#log-batch (1000 metrics)."""
_VALUE_CHARACTERS = 6000
"""Longest value of a parameter; the same page."""


class MLflow:
    """One MLflow run for a phase; see `Tracker`."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run = ""

    def start(self, phase: TrackedPhase) -> None:
        """See `Tracker`. A resumed phase goes on with the run that its folder's mlflow.json names."""
        from mlflow import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or "the default of mlflow"
        try:
            self._client = MlflowClient()
            kept = phase.folder / "mlflow.json"
            self._run = _kept_run(kept) or self._create(phase, kept)
            self._client.set_terminated(self._run, status="RUNNING")
        except Exception as error:  # unreachable, refused, a store it does not support: classes differ between stores
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"training.trackers: mlflow cannot start with MLFLOW_TRACKING_URI {place} ({reason}); set it to a server "
                "that runs, such as http://127.0.0.1:5000 of `mlflow server`, or take mlflow out of training.trackers"
            ) from error

    def _create(self, phase: TrackedPhase, kept: Path) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {f"environment.{key}": str(value) for key, value in phase.environment.items()}
        created = self._client.create_run(number, run_name=f"{phase.run}-{phase.phase}", tags=tags)
        identifier = str(created.info.run_id)
        settings = [Param(_allowed(key), str(value)[:_VALUE_CHARACTERS]) for key, value in phase.settings.items()]
        for first in range(0, len(settings), _AT_ONCE):
            self._client.log_batch(identifier, params=settings[first : first + _AT_ONCE])
        write_text(kept, json.dumps({"id": identifier}) + "\n")
        return identifier

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(_allowed(name), value, now, step) for name, value in figures.items()]
        for first in range(0, len(rows), 1000):
            self._client.log_batch(self._run, metrics=rows[first : first + 1000])

    def finish(self, completed: bool) -> None:
        """See `Tracker`."""
        if self._run:
            self._client.set_terminated(self._run, status="FINISHED" if completed else "KILLED")


def _kept_run(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _allowed(name: str) -> str:
    """A name of letters, digits and `_-./: `, as MLflow takes it."""
    return re.sub(r"[^\w\-./: ]", "_", name)
