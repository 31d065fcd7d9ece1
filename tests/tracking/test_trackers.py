"""Trackers: what each records, offline with the real packages where they are installed, and what happens on errors."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.tracking import registry
from dist_metaxlm.tracking.log import TrackerLog
from dist_metaxlm.tracking.tracker import TrackedPhase, figures_of

RECORD: Any = {
    "step": 20,
    "tokens": 4096,
    "loss": None,
    "losses": {"mlm": 2.5},
    "language_losses": {"mlm": {"en": 2.0, "de": 3.0}},
    "realised": {"mlm": {"en": 3}},
    "asked": {"mlm": {"en": 0.5}},
    "asked_so_far": {"mlm": {"en": 0.5}},
    "tokens_per_second": 100.0,
    "heldout": {"bits_per_byte": 1.5, "sample": "ab12", "word_frequencies": None, "languages": {"en": 1.25}},
}


class Recorded:
    """A user's own tracker."""

    calls: list[Any] = []

    def start(self, phase: TrackedPhase) -> None:
        self.calls.append(("start", phase.phase))

    def log(self, step: int, figures: dict[str, float]) -> None:
        self.calls.append(("log", step, figures))

    def finish(self, completed: bool) -> None:
        self.calls.append(("finish", completed))


class Broken(Recorded):
    def log(self, step: int, figures: dict[str, float]) -> None:
        raise ConnectionError("the server is gone")


@pytest.fixture
def phase(tmp_path: Path) -> TrackedPhase:
    environment: Any = {"device": "a CPU", "commit": "ab12"}
    settings = {"seed": 1, "phases.meta.steps": 40}
    return TrackedPhase(run="tiny", phase="meta", folder=tmp_path, step=0, settings=settings, environment=environment)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two trackers as an installed package offers them; the calls of both."""
    offered = [EntryPoint(name.lower(), f"{__name__}:{name}", registry.GROUP) for name in ("Recorded", "Broken")]
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Recorded=Recorded, Broken=Broken))  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "entry_points", lambda group: offered if group == registry.GROUP else [])
    Recorded.calls.clear()
    return Recorded.calls


def test_figures_are_the_numbers_of_a_record_without_the_mix() -> None:
    assert figures_of(RECORD) == {
        "tokens": 4096,
        "losses/mlm": 2.5,
        "language_losses/mlm/en": 2.0,
        "language_losses/mlm/de": 3.0,
        "tokens_per_second": 100.0,
        "heldout/bits_per_byte": 1.5,
        "heldout/languages/en": 1.25,
    }


def test_a_tracker_of_an_installed_package_gets_everything(phase: TrackedPhase, own: list[Any]) -> None:
    with TrackerLog(["recorded"], phase) as log:
        log.write(RECORD)
    assert own == [("start", "meta"), ("log", 20, figures_of(RECORD)), ("finish", True)]


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
    phase: TrackedPhase, own: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    log = TrackerLog(["broken", "recorded"], phase)
    log.write(RECORD)
    log.write(RECORD)
    log.close(completed=False)
    assert [call[0] for call in own] == ["start", "start", "log", "log", "finish"]
    assert own[-1] == ("finish", False)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "warning: tracker broken failed (ConnectionError: the server is gone) and gets no more figures"
    )


def test_unknown_and_missing_trackers_are_one_sentence(monkeypatch: pytest.MonkeyPatch, own: list[Any]) -> None:
    known = r"known: broken, mlflow, recorded, tensorboard, wandb "
    with pytest.raises(UserError, match=rf"no tracker 'wandbb', did you mean wandb\? {known}"):
        registry.check_trackers(["tensorboard", "wandbb"])
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb needs the package wandb, .*; install dist-metaxlm\[trackers\]"):
        registry.check_trackers(["wandb"])


def test_wandb_goes_on_under_its_id(phase: TrackedPhase, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a module in its place; the real one is below."""
    begun: list[dict[str, Any]] = []
    logged: list[Any] = []

    def init(**words: Any) -> SimpleNamespace:
        begun.append(words)
        return SimpleNamespace(
            log=lambda row, step: logged.append((step, row)), finish=lambda exit_code: logged.append(exit_code)
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "find_spec", lambda name: name)
    for completed in (False, True):
        log = TrackerLog(["wandb"], phase)
        log.write(RECORD)
        log.close(completed)
    assert begun[0]["id"] == begun[1]["id"] == json.loads((phase.folder / "wandb.json").read_text())["id"]
    assert begun[0]["config"]["phases.meta.steps"] == 40
    assert begun[0]["config"]["environment.commit"] == "ab12"
    assert logged == [(20, figures_of(RECORD)), 1, (20, figures_of(RECORD)), 0]


def test_wandb_that_cannot_start_is_one_sentence(phase: TrackedPhase, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**words: Any) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "find_spec", lambda name: name)
    with pytest.raises(
        UserError, match=r"cannot start \(api_key not configured \(no-tty\)\); log in with .*WANDB_MODE=offline"
    ):
        TrackerLog(["wandb"], phase)


def test_the_real_wandb_offline(phase: TrackedPhase, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with TrackerLog(["wandb"], phase) as log:
        log.write(RECORD)
    files = list(phase.folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"losses/mlm" in content
    assert b"phases.meta.steps" in content


def test_the_real_mlflow_in_a_folder(phase: TrackedPhase, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    place = (phase.folder / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):
        with TrackerLog(["mlflow"], phase) as log:
            log.write(RECORD)
    runs = mlflow.MlflowClient(place).search_runs(
        [mlflow.MlflowClient(place).get_experiment_by_name("dist_metaxlm").experiment_id]
    )
    assert len(runs) == 1
    assert runs[0].data.metrics["losses/mlm"] == 2.5
    assert runs[0].data.params["phases.meta.steps"] == "40"
    assert runs[0].data.tags["environment.device"] == "a CPU"
    assert runs[0].info.status == "FINISHED"
