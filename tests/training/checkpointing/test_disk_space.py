"""Room for checkpoints: counted as the planner counts it, asked before a phase and before each save."""

from __future__ import annotations

import errno
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from saving_engine import small_engine

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.planning.checkpoint_size import checkpoint_bytes
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.checkpointing.disk_space import check_room
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver
from dist_metaxlm.training.pretrain import Options, pretrain

Usage = namedtuple("Usage", "total used free")
RECIPE = load_recipe("xlmr-base", ["training.keep_checkpoints=3", "training.checkpoint_interval=1000"])
NEED = checkpoint_bytes(RECIPE.model, RECIPE.phases["meta"])


@pytest.fixture()
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A disk whose free bytes the test decides."""
    found = {"free": 0, "total": 10**15}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(found["total"], 0, found["free"]))
    return found


def room(root: Path, from_scratch: bool = False) -> str | None:
    return check_room(root, RECIPE, "meta", from_scratch)


def fill(root: Path, name: str, size: int) -> None:
    """A sparse file of `size` bytes."""
    (root / name).mkdir(parents=True)
    with (root / name / "weights-00000.safetensors").open("wb") as stream:
        stream.truncate(size)


def test_too_little_for_one_is_refused_with_both_numbers(tmp_path: Path, disk: dict[str, int]) -> None:
    disk["free"] = NEED - 1
    with pytest.raises(UserError) as raised:
        room(tmp_path / "not" / "there")
    for part in (
        f"takes {NEED:,} bytes",
        f"{NEED - 1:,} free",
        "training.keep_checkpoints 3",
        f"{4 * NEED:,} bytes",
        "--run_dir",
        "xlmr-base",
    ):
        assert part in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("checkpoints", "remedy"), [(1, None), (2, 1), (3, 2)])
def test_too_little_for_all_is_one_line_with_what_would_fit(
    tmp_path: Path, disk: dict[str, int], checkpoints: int, remedy: int | None
) -> None:
    disk["free"] = checkpoints * NEED
    line = room(tmp_path)
    assert line is not None
    assert "\n" not in line
    assert f"room for {pluralize(checkpoints, 'checkpoint')}" in line
    assert (f"set training.keep_checkpoints={remedy}," in line) == (remedy is not None)


def test_enough_or_unknown_is_no_word(tmp_path: Path, disk: dict[str, int]) -> None:
    disk["free"] = 4 * NEED
    assert room(tmp_path) is None
    disk.update(free=0, total=0)
    assert room(tmp_path) is None


def test_what_lies_there_counts_unless_it_is_set_aside(tmp_path: Path, disk: dict[str, int]) -> None:
    disk["free"] = 2 * NEED
    for step in (1000, 2000):
        fill(tmp_path, f"step-{step:08d}", NEED)
    assert room(tmp_path) is None
    assert room(tmp_path, from_scratch=True) is not None
    disk["free"] = NEED // 2
    fill(tmp_path, ".step-00003000.tmp", NEED)  # a killed run's, which the next save removes
    assert "room for 3 checkpoints" in (room(tmp_path) or "")
    with pytest.raises(UserError, match="larger disk"):
        room(tmp_path, from_scratch=True)


def test_a_short_phase_asks_for_no_more_than_it_saves(tmp_path: Path, disk: dict[str, int]) -> None:
    recipe = load_recipe(
        "xlmr-base", ["training.keep_checkpoints=50", "training.checkpoint_interval=500", "phases.meta.steps=700"]
    )
    disk["free"] = 2 * NEED
    assert check_room(tmp_path, recipe, "meta") is None
    disk["free"] = 2 * NEED - 1
    assert "up to 2 at once" in (check_room(tmp_path, recipe, "meta") or "")


def test_a_run_is_refused_before_anything_is_written(
    tiny_recipe: Path, tmp_path: Path, disk: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_metaxlm.training.pretrain.complete_environment", lambda *_: None)
    data = tmp_path / "data"
    with pytest.raises(UserError, match="a checkpoint of recipe tiny takes"):
        pretrain(
            Options("meta", str(tiny_recipe), (f"data.directory={data}",), run_dir=str(tmp_path / "run")),
            HeldoutProbe,
            HeldoutLoss,
        )
    assert not list(tmp_path.iterdir())


def test_a_save_without_room_is_not_begun(tmp_path: Path, disk: dict[str, int]) -> None:
    progress, engine = {"seen": torch.ones(3)}, small_engine()
    disk["free"] = 10**9
    with CheckpointSaver(tmp_path, engine, 2, background=True) as saver:
        saver.save({"step": 1}, progress)
        saver.wait()
        written = sum(path.stat().st_size for path in (tmp_path / "step-00000001").glob("*0.safetensors"))
        disk["free"] = written // 2
        (tmp_path / "step-00000001").rename(tmp_path / "elsewhere")
        saver.save({"step": 2}, progress)
        with pytest.raises(OSError, match="step-00000002") as raised:
            saver.wait()
        assert raised.value.errno == errno.ENOSPC
        assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
        disk["free"] = written
        saver.save({"step": 3}, progress)
    assert (tmp_path / "step-00000003").is_dir()
