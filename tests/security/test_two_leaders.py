"""Two jobs never both commit: one that is suspended anywhere in its commit, and continues after a takeover, is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_metaxlm.training.checkpointing.commit import commit_folder, unfinished_folder, withdraw_unfinished
from dist_metaxlm.training.run import lease as lease_module
from dist_metaxlm.training.run.lease import Lease

# A job that is suspended at the point of its second argument, as by SIGSTOP, and continues with SIGCONT.
WRITER = """
import os, signal, sys
from pathlib import Path
from dist_metaxlm import failpoints
from dist_metaxlm.errors import UserError
from dist_metaxlm.training.checkpointing import commit
from dist_metaxlm.training.run import lease as lease_module
lease_module.STALE_SECONDS = 1.0
run, point = Path(sys.argv[1]), sys.argv[2]
checkpoints = run / "meta/checkpoints"
with lease_module.Lease(run, "meta", checkpoints) as lease:
    target = checkpoints / "step-00000004"
    own = commit.unfinished_folder(target, "old")
    own.mkdir(parents=True)
    (own / "who").write_text("old")
    if point == "before the check":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        failpoints.plant(0, "saving.committing:rank0:stop")
    try:
        commit.commit_folder(own, target, 4, lease.check)
    except UserError as error:
        print(error)
        sys.exit(2)
"""


def stopped(process: subprocess.Popen[str]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("point", ["before the check", "after the check"])
@pytest.mark.parametrize("commits", [True, False], ids=["the new job has committed", "the new job has not"])
def test_a_suspended_writer_is_refused_after_a_takeover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, commits: bool
) -> None:
    monkeypatch.setattr(lease_module, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lease_module, "_place", lambda: "another machine")  # its process cannot be looked at
    old = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), point], stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not stopped(old):
            assert old.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        checkpoints = tmp_path / "meta/checkpoints"
        with Lease(tmp_path, "meta", checkpoints) as new:
            assert list(checkpoints.iterdir()) == []
            target = checkpoints / "step-00000004"
            if commits:
                own = unfinished_folder(target, "new")
                own.mkdir()
                (own / "who").write_text("new")
                commit_folder(own, target, 4, new.check)
            old.send_signal(signal.SIGCONT)
            output, _ = old.communicate(timeout=60)
            assert old.returncode == 2
            assert "another job has taken over phase meta" in output
            assert [path.name for path in checkpoints.iterdir()] == (["step-00000004"] if commits else [])
            assert not commits or (target / "who").read_text() == "new"
            new.check()
    finally:
        old.kill()
        old.wait()


def test_a_damaged_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "step-00000004"
    target.mkdir()
    (target / "damaged").touch()
    own = unfinished_folder(target, "job")
    own.mkdir()
    commit_folder(own, target, 4, lambda: None)
    assert list(tmp_path.rglob("*")) == [target]


def test_only_a_job_s_own_folders_are_withdrawn_while_it_runs(tmp_path: Path) -> None:
    for job in ("a", "b"):
        unfinished_folder(tmp_path / "step-00000004", job).mkdir()
    withdraw_unfinished(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == [".step-00000004.b.tmp"]
    withdraw_unfinished(tmp_path)
    assert os.listdir(tmp_path) == []
