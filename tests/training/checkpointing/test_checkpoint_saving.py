"""Saving beside training: what is written, what a kill or a full disk leaves behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from saving_engine import small_engine, state, update

from dist_metaxlm import failpoints
from dist_metaxlm.errors import GracefulStop
from dist_metaxlm.storage import tensor_file
from dist_metaxlm.training.checkpointing.checkpoint import newest_checkpoint, restore
from dist_metaxlm.training.checkpointing.gather_plan import GatherPlan
from dist_metaxlm.training.checkpointing.manifest import list_steps, step_folder, verify_manifest
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver
from dist_metaxlm.training.loop.guard_log import RollBack
from dist_metaxlm.training.run.lease import Lease

PROGRESS = {"seen": torch.tensor([1, 0, 1], dtype=torch.uint8), "realised": torch.arange(4)}
WORKER = Path(__file__).with_name("worker_saving.py")


def saved(root: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(root)
    assert checkpoint is not None
    return {**checkpoint.tensors("weights"), **checkpoint.tensors("moments")}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")


def test_a_damaged_later_checkpoint_does_not_push_out_the_intact_ones(tmp_path: Path) -> None:
    engine = small_engine()
    with CheckpointSaver(tmp_path, engine, keep=1, background=False) as saver:
        saver.save({"step": 2}, PROGRESS)
        step_folder(tmp_path, 8).mkdir()  # never finished
        saver.save({"step": 4}, PROGRESS)
        assert list_steps(tmp_path) == [4, 8]
        saver.save({"step": 8}, PROGRESS)
    assert list_steps(tmp_path) == [8]
    assert equal(saved(tmp_path), state(engine))


def test_both_ways_write_the_same_bytes(tmp_path: Path) -> None:
    engine = small_engine()
    update(engine)
    for background in (False, True):
        with CheckpointSaver(tmp_path / str(background), engine, 2, background) as saver:
            saver.save({"step": 7}, PROGRESS)
    folders = [step_folder(tmp_path / str(background), 7) for background in (False, True)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert (
        names[0]
        == names[1]
        == ["manifest.json", "moments-00000.safetensors", "progress-00000.safetensors", "weights-00000.safetensors"]
    )
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names[0])
    assert equal(saved(tmp_path / "True"), state(engine))


def test_training_goes_on_during_the_copy_and_its_update_is_not_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked, release = small_engine(), threading.Event(), threading.Event()
    copy, hold = GatherPlan.copy, CheckpointSaver.wait_for_copy

    def slow_copy(*arguments: Any) -> None:
        release.wait()
        copy(*arguments)

    def noticed(saver: CheckpointSaver) -> None:
        asked.set()
        hold(saver)

    monkeypatch.setattr(GatherPlan, "copy", slow_copy)
    monkeypatch.setattr(CheckpointSaver, "wait_for_copy", noticed)
    update(engine)
    expected = state(engine)
    with CheckpointSaver(tmp_path, engine, 2, background=True) as saver:
        saver.save({"step": 1}, PROGRESS)  # returns although nothing has been copied
        threading.Thread(target=lambda: asked.wait() and release.set()).start()
        update(engine)  # would run over the copy if it did not wait for it
        later = state(engine)
    assert equal(saved(tmp_path), expected)
    assert not equal(later, expected)
    assert saver.stalled > 0


def test_progress_that_changes_after_the_call_is_not_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, release, progress = GatherPlan.copy, threading.Event(), {"realised": torch.arange(4)}
    monkeypatch.setattr(GatherPlan, "copy", lambda *arguments: release.wait() and copy(*arguments))
    with CheckpointSaver(tmp_path, small_engine(), 2, background=True) as saver:
        saver.save({"step": 1}, progress)
        progress["realised"] += 1
        release.set()
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.tensors("progress")["realised"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("moment", [None, "exp_avg_sq"])
def test_a_value_that_is_not_finite_is_never_committed(
    moment: str | None, value: float, background: bool, tmp_path: Path
) -> None:
    engine = small_engine()
    saver = CheckpointSaver(tmp_path, engine, 3, background)
    saver.save({"step": 1}, PROGRESS)
    saver.wait()
    param = list(engine.module.parameters())[-1]
    tensor = param.data if moment is None else engine.optimizer.state[param][moment]
    tensor.view(-1)[-1] = value
    with pytest.raises(RollBack, match="after step 2 have values that are not finite"), saver:
        saver.save({"step": 2}, PROGRESS)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("point", ["saving.begin", "saving.after_files", "saving.before_commit"])
@pytest.mark.parametrize("action", ["eio", "raise"])
def test_a_fault_at_any_point_leaves_the_step_before(point: str, action: str, tmp_path: Path) -> None:
    def save_twice() -> None:
        with CheckpointSaver(tmp_path, small_engine(), 3, background=True) as saver:
            saver.save({"step": 1}, PROGRESS)
            saver.save({"step": 2}, PROGRESS)

    failpoints.plant(0, f"{point}@2:rank0:{action}")
    try:
        with pytest.raises(OSError if action == "eio" else RuntimeError):
            save_twice()
    finally:
        failpoints.plant(0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_restored_bit_by_bit(tmp_path: Path) -> None:
    engine, other = small_engine(), small_engine(seed=2)
    for _ in range(3):
        update(engine)
    with CheckpointSaver(tmp_path, engine, 1, background=True) as saver:
        saver.save({"step": 2}, PROGRESS)
        saver.save({"step": 3}, PROGRESS)
    assert list_steps(tmp_path) == [3], "older ones beyond `keep` are removed"
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    restore(other, checkpoint)
    assert equal(state(other), state(engine))
    assert checkpoint.facts["adam_step"] == 3
    update(engine)
    update(other)
    assert equal(state(other), state(engine))


def test_torch_distributed_checkpoint_reads_the_folder(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    engine = small_engine()
    update(engine)
    with CheckpointSaver(tmp_path, engine, 1, background=True) as saver:
        saver.save({"step": 1}, PROGRESS)
    expected = state(engine)
    read = {name: torch.zeros_like(value) for name, value in expected.items()}
    dcp.load(read, storage_reader=dcp.HuggingFaceStorageReader(str(step_folder(tmp_path, 1))))
    assert equal(read, expected)


def ways_of_learning() -> list[Callable[[CheckpointSaver], None]]:
    def by_waiting(saver: CheckpointSaver) -> None:
        saver.wait()

    def by_checking(saver: CheckpointSaver) -> None:
        while True:
            saver.check(torch.device("cpu"))

    def by_the_next_save(saver: CheckpointSaver) -> None:
        saver.save({"step": 3}, PROGRESS)

    def by_the_end(saver: CheckpointSaver) -> None:
        pass

    def by_stopping(saver: CheckpointSaver) -> None:
        raise GracefulStop("stopped and saved")

    return [by_waiting, by_checking, by_the_next_save, by_the_end, by_stopping]


@pytest.mark.parametrize("learn", ways_of_learning(), ids=lambda way: way.__name__)
def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learn: Callable[[CheckpointSaver], None]
) -> None:
    engine = small_engine()

    def run() -> None:
        with CheckpointSaver(tmp_path, engine, 2, background=True) as saver:
            saver.save({"step": 1}, PROGRESS)
            saver.wait()
            monkeypatch.setattr(tensor_file.TensorFile, "append", full_disk)
            saver.save({"step": 2}, PROGRESS)
            learn(saver)

    with pytest.raises(OSError, match="step-00000002") as raised:
        run()
    assert raised.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    verify_manifest(tmp_path / "step-00000001")


def test_another_error_is_not_hidden_by_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensor_file.TensorFile, "finalize", full_disk)

    def run() -> None:
        with CheckpointSaver(tmp_path, small_engine(), 2, background=True) as saver:
            saver.save({"step": 2}, PROGRESS)
            raise FloatingPointError("the loss is nan")

    with pytest.raises(FloatingPointError):
        run()
    assert "No space left on device" in capsys.readouterr().err


def test_another_error_does_not_lose_the_save_that_goes_on(tmp_path: Path) -> None:
    def run() -> None:
        with CheckpointSaver(tmp_path, small_engine(), 2, background=True) as saver:
            saver.save({"step": 2}, PROGRESS)
            raise FloatingPointError("the loss is nan")

    with pytest.raises(FloatingPointError):
        run()
    assert list_steps(tmp_path) == [2]
    verify_manifest(step_folder(tmp_path, 2))


def test_killed_in_the_middle_of_a_save_the_one_before_is_the_newest(
    tmp_path: Path, start_ranks: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    process = start_ranks(1, WORKER, "kill", str(tmp_path))[0]
    deadline = time.monotonic() + 120
    while not (tmp_path / "in the middle").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    (unfinished,) = tmp_path.glob(".step-00000002.*.tmp")
    assert unfinished.is_dir(), err
    assert any(path.stat().st_size for path in unfinished.iterdir())
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    engine, expected = small_engine(seed=5), small_engine()
    update(expected)
    restore(engine, checkpoint)
    assert equal(state(engine), state(expected))
    with Lease(tmp_path, "meta", tmp_path), CheckpointSaver(tmp_path, engine, 3, background=True) as saver:
        assert not unfinished.exists(), "what a killed run has left is removed by the next run"
        saver.save({"step": 3}, PROGRESS)
    assert list_steps(tmp_path) == [1, 3]


def test_what_one_rank_cannot_write_or_finds_damaged_all_ranks_are_told(
    tmp_path: Path, start_ranks: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    outcomes = [process.communicate(timeout=120) for process in start_ranks(2, WORKER, "fail", str(tmp_path))]
    for rank, (out, err) in enumerate(outcomes):
        assert "training goes on" in out, err
        assert f"rank {rank}: [Errno 28] No space left on device: '{tmp_path / 'step-00000002'}'" in out, err
        # Two ranks of one node read half of the digests each; on two nodes each reads all of them.
        assert f"shares: {(rank, 2)} {(0, 1)}" in out
        assert "newest: 1" in out
        assert "damaged: None" in out, "damage that one rank finds holds back the other too"
    assert sum("weights-00001.safetensors does not match the SHA-256" in err for _, err in outcomes) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    names = {path.name for path in (tmp_path / "step-00000001").iterdir()}
    assert {f"{kind}-{rank:05d}.safetensors" for kind in ("weights", "moments") for rank in range(2)} < names
    content = bytearray((tmp_path / "step-00000001" / "weights-00001.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "step-00000001" / "weights-00001.safetensors").write_bytes(content)
    expected = small_engine()
    update(expected)
    assert equal(saved(tmp_path), state(expected))
