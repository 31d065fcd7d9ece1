"""An evaluation that is ended three times and started again has the figures of an undisturbed one and repeats no work."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from dist_metaxlm import failpoints
from dist_metaxlm.errors import GracefulStop, UserError
from dist_metaxlm.evaluation.resume import parts, scratch
from dist_metaxlm.evaluation.resume.learning import last_checkpoint
from dist_metaxlm.evaluation.resume.progress import Progress
from dist_metaxlm.evaluation.resume.stop import stop_on_sigterm
from dist_metaxlm.evaluation.tasks.run import TaskOptions, evaluate_encoders, libraries_on_standard_error

FAST = ("learning_rate=0.01", "epochs=3", "batch_size=16", "max_train=32", "max_test=8")
PLACES = ("evaluating.language@1", "evaluating.epoch@2", "evaluating.seed@1")
EXIT_KILLED = -signal.SIGKILL


def _evaluate(model: Path, data: Path, work: Path, place: str | None, number: int) -> None:
    """In a process of its own: evaluate, and end it by signal `number` at a failpoint."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs in the background without it
    tempfile.tempdir = str(work.parent / "tmp")
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    failpoints._act = lambda fault, step: os.kill(os.getpid(), number)
    failpoints.plant(0, "" if place is None else f"{place}:rank0:kill")
    options = TaskOptions(data, seeds=(1, 2), settings=FAST, work=work, predictions=work.parent / "rows")
    with (work.parent / "log.txt").open("a", encoding="utf-8") as log, stop_on_sigterm():
        try:
            evaluate_encoders(
                None,
                [],
                [str(model)],
                ["tatoeba", "udpos"],
                options,
                str(work.parent / "all.json"),
                lambda line: print(line, file=log, flush=True),
            )
        except (GracefulStop, KeyboardInterrupt):
            os._exit(75)
    os._exit(0)


def _start(model: Path, data: Path, work: Path, place: str | None = None, number: int = 0) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=_evaluate, args=(model, data, work, place, number))
    process.start()
    process.join(120)
    return process.exitcode


def _figures(folder: Path) -> object:
    encoders = json.loads((folder / "all.json").read_text(encoding="utf-8"))["encoders"]
    for of in encoders.values():
        for result in of.values():
            del result["seconds"]
    return encoders


@pytest.fixture(scope="module")
def undisturbed(model_folder, task_data, tmp_path_factory):
    with libraries_on_standard_error():  # imported once here, and not in every process that is forked
        for name in ("seqeval.metrics", "accelerate"):
            importlib.import_module(name)
        from transformers import AutoModelForTokenClassification, AutoTokenizer, Trainer

        assert all((AutoModelForTokenClassification, AutoTokenizer, Trainer))
    folder = tmp_path_factory.mktemp("undisturbed")
    assert _start(model_folder, task_data, folder / "work") == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_killed_evaluation_goes_on(model_folder, task_data, tmp_path, undisturbed, number):
    work = tmp_path / "work"
    for place in PLACES:
        assert _start(model_folder, task_data, work, place, number) == (EXIT_KILLED if number == signal.SIGKILL else 75)
    assert _start(model_folder, task_data, work) == 0
    assert _figures(tmp_path) == _figures(undisturbed)
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    epochs = [line.split(":")[0] for line in lines if ", epoch " in line]
    assert epochs == [f"udpos, seed {seed}, epoch {epoch} of 3" for seed in (1, 2) for epoch in (1, 2, 3)]
    assert sum("finished before" in line for line in lines if line.startswith("tatoeba")) == 2
    rows = sorted(path.relative_to(tmp_path) for path in (tmp_path / "rows").rglob("*.jsonl"))
    assert rows == sorted(path.relative_to(undisturbed) for path in (undisturbed / "rows").rglob("*.jsonl"))
    assert all((tmp_path / path).read_bytes() == (undisturbed / path).read_bytes() for path in rows)
    assert not list(work.rglob("checkpoint-*"))
    assert not list((tmp_path / "tmp").iterdir())


def test_saved_predictions_have_every_example(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "rows/model/udpos-seed2-de.jsonl").read_text("utf-8").splitlines()]
    result = _figures(undisturbed)["model"]
    right = [a == b for row in rows for a, b in zip(row["gold"], row["predicted"], strict=True)]
    assert len(rows) == result["udpos"]["examples"]["test"]["de"] == 8
    assert sum(right) / len(right) == pytest.approx(result["udpos"]["scores"][1]["de"]["token_accuracy"])
    pairs = [json.loads(line) for line in (undisturbed / "rows/model/tatoeba-de.jsonl").read_text("utf-8").splitlines()]
    layer = result["tatoeba"]["layer"]
    share = sum(row["gold"] == row["to_english"] for row in pairs) / len(pairs)
    assert share == pytest.approx(result["tatoeba"]["languages"]["de"]["cosine"]["to_english"][layer])


def test_an_incomplete_checkpoint_is_deleted_and_a_moved_one_repaired(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for number, text in ((2, {"global_step": 2, "best_model_checkpoint": "/before/checkpoint-2"}), (4, None)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(json.dumps(text) if text else '{"global')
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(
        json.dumps({"global_step": 2, "best_model_checkpoint": "/before/checkpoint-1"})
    )
    assert last_checkpoint(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_abandoned_temporary_folders_are_deleted_and_used_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "dist_metaxlm-export-killed").mkdir()
    (tmp_path / "dist_metaxlm-export-killed" / "in-use.lock").touch()
    with scratch.scratch_folder("export") as used, scratch.scratch_folder("export") as other:
        assert used.is_dir()
        assert other.is_dir()
        assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())


def test_two_evaluations_of_the_same_task_are_refused(tmp_path):
    first, second = (parts.parts_of(tmp_path, "e", "udpos", {"settings": 1}) for _ in range(2))
    assert first.folder != parts.parts_of(tmp_path, "e", "udpos", {"settings": 2}).folder
    with first.locked(), pytest.raises(UserError, match="another process runs the same task"), second.locked():
        pass


def test_progress_says_the_time_left():
    clock, lines = iter([0.0, 10.0, 40.0, 50.0, 100.0]), []
    progress = Progress(lines.append, "udpos, seed 1", 1100, 100, lambda: next(clock))
    for done in (120, 300, 320, 1100):
        progress.reach(done, "steps")
    assert lines == ["udpos, seed 1: 300 of 1,100 steps, 3 min left"]
