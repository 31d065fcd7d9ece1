"""`--dry_run` makes the checks of a real start, reports its size, and writes nothing."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.training.pretrain import Options, pretrain
from dist_metaxlm.training.run.lease import Lease


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def check(recipe: Path, run: Path, *overrides: str, phase: str = "meta") -> None:
    pretrain(Options(phase, str(recipe), overrides, run_dir=str(run), dry_run=True), HeldoutProbe, HeldoutLoss)


@pytest.fixture(autouse=True)
def _plain_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_metaxlm.logs.set_up", lambda rank, size: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_a_good_start_is_described_and_nothing_is_written(
    tiny_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = tree(tiny_recipe.parent)
    with caplog.at_level(logging.INFO):
        check(tiny_recipe, tmp_path / "run")
    for part in (
        "matches the recipe and its checksums",
        "32,956 parameters",
        "8 steps, 4,096 tokens",
        "memory: about",
        "passes",
    ):
        assert part in caplog.text
    assert tree(tiny_recipe.parent) == before
    assert not (tmp_path / "run").exists()
    assert not torch.distributed.is_initialized()


def test_what_a_start_refuses_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="finished meta phase"):
        check(tiny_recipe, tmp_path / "run", phase="cross")
    with pytest.raises(UserError, match="heldout_strings"):
        check(tiny_recipe, tmp_path / "run", "data.heldout_strings=21")  # prepared with another number
    with pytest.raises(UserError, match=r"nothing\.txt"):
        check(tiny_recipe, tmp_path / "run", f"data.directory={tmp_path / 'new'}", "data.text={en: [nothing.txt]}")
    with Lease(tmp_path / "run", "meta"), pytest.raises(UserError, match="is being written by process"):
        check(tiny_recipe, tmp_path / "run")


def test_damaged_data_are_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_recipe.parent / "data", tmp_path / "data")
    path = next((tmp_path / "data" / "store").rglob("*.bin"))
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(UserError, match="is damaged between bytes 0 and"):
        check(tiny_recipe, tmp_path / "run", f"data.directory={tmp_path / 'data'}")
