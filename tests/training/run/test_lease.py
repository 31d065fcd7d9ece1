"""Two jobs never write one phase: the second is refused while the first lives, and takes over when it is dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.training.run import lease as lease_module
from dist_metaxlm.training.run.lease import Lease

HOLD = """
import sys, time
from pathlib import Path
from dist_metaxlm.training.run.lease import Lease
with Lease(Path(sys.argv[1]), "meta"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of phase meta."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease_module, "STALE_SECONDS", 1.0)


def leases(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".lease-*"))


def test_a_second_job_is_refused_with_host_and_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match=rf"is being written by process {holder.pid} on \S+, started \d+ s ago; wait for it"):
        Lease(tmp_path, "meta")
    with Lease(tmp_path, "cross"):
        assert leases(tmp_path) == [".lease-cross-1", ".lease-meta-1"]


def test_a_killed_job_is_followed_at_once_and_a_suspended_one_is_not(
    tmp_path: Path, holder: subprocess.Popen[str], fast: None
) -> None:
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="is being written by process"):
        Lease(tmp_path, "meta")
    holder.kill()
    holder.wait()
    start = time.monotonic()
    with Lease(tmp_path, "meta") as lease:
        assert time.monotonic() - start < 1.0
        assert leases(tmp_path) == [".lease-meta-2"]
        lease.check()
    assert leases(tmp_path) == []


def elsewhere(path: Path) -> None:
    """Let a lease be that of another machine."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "host": "other", "place": "another boot", "pid": 1}), encoding="utf-8")


def test_a_job_elsewhere_is_followed_only_if_it_no_longer_renews(tmp_path: Path, fast: None) -> None:
    with Lease(tmp_path, "meta"):
        elsewhere(tmp_path / ".lease-meta-1")
        with pytest.raises(UserError, match="by process 1 on other"):
            Lease(tmp_path, "meta")
    assert leases(tmp_path) == []
    (tmp_path / ".lease-meta-4").write_text(json.dumps({"host": "other", "place": "another boot", "pid": 1, "start": 0.0}))
    with Lease(tmp_path, "meta"):
        assert leases(tmp_path) == [".lease-meta-5"]


def test_a_fenced_job_may_not_commit(tmp_path: Path, fast: None) -> None:
    first = Lease(tmp_path, "meta")
    first.check()
    elsewhere(tmp_path / ".lease-meta-1")
    first._end.set()
    first._thread.join()
    os.utime(tmp_path / ".lease-meta-1", (1e9, 1e9))
    with Lease(tmp_path, "meta") as second:
        second.check()
        with pytest.raises(UserError, match="another job has taken over phase meta"):
            first.check()
        first.__exit__(None, None, None)
        second.check()


def test_a_lease_without_content_counts_as_held_while_it_is_renewed(tmp_path: Path, fast: None) -> None:
    (tmp_path / ".lease-meta-7").write_text("")
    with Lease(tmp_path, "meta"):
        assert leases(tmp_path) == [".lease-meta-8"]
