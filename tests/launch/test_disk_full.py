"""A full disk: one sentence, exit 74, the checkpoint before stays whole and nothing unfinished stays behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.training.checkpointing.manifest import verify_manifest
from dist_metaxlm.training.pretrain import Options, pretrain

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint of the tiny model (400 kB), not for two."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_while_saving(
    small_disk: Path, tiny_recipe: Path, start_ranks: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    run = small_disk / "run"
    processes = start_ranks(
        2, ROOT / "launch" / "pretrain.py", "--phase", "meta", "--recipe", str(tiny_recipe), "--run_dir", str(run)
    )
    outcomes = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [74, 74], outcomes
    errors = [line for line in outcomes[0][1].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    warnings = [line for line in outcomes[0][1].splitlines() if " warning: " in line and "--run_dir" in line]
    assert len(warnings) == 1
    assert "room for 1 checkpoint" in warnings[0]
    assert "No space left on device" in errors[0]
    assert [path.name for path in (run / "meta" / "checkpoints").iterdir()] == ["step-00000004"]
    assert verify_manifest(run / "meta" / "checkpoints" / "step-00000004")["step"] == 4
    assert not (run / "meta" / "done.json").exists()


def test_a_disk_too_small_for_one_checkpoint_is_refused(
    small_disk: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_metaxlm.training.pretrain.complete_environment", lambda *_: None)
    (small_disk / "other").write_bytes(b" " * 500_000)
    with pytest.raises(UserError, match="a checkpoint of recipe tiny takes") as raised:
        pretrain(Options("meta", str(tiny_recipe), run_dir=str(small_disk / "run")), HeldoutProbe, HeldoutLoss)
    assert "free some space, or give a --run_dir" in str(raised.value)
    assert [path.name for path in small_disk.iterdir()] == ["other"]
