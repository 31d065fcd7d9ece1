"""The machines of these tests leave nothing behind, however the run that made them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from leftovers import REGISTER, namespaces, processes, remove_dead

RUN = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts into the background deaf to it
sys.path.insert(0, sys.argv[1])
from cluster import Cluster
from slurm import start_slurm
with Cluster(Path(sys.argv[2]), 2) as cluster:
    if len(sys.argv) > 3:
        start_slurm(cluster)
    cluster.start("node2", "sleep", "3600")
    print(cluster.tag, flush=True)
    time.sleep(3600)
"""


def begin(folder: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(Path(__file__).parent), str(folder), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits for its parent to read its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def mounts() -> list[str]:
    return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_leaves_nothing(nodes_possible: None, tmp_path: Path, number: signal.Signals) -> None:
    from cluster import PACKAGES, SLURM_PACKAGES, missing

    before = mounts()
    process, tag = begin(tmp_path, *([] if missing({**PACKAGES, **SLURM_PACKAGES}) else ["slurm"]))
    pids = [pid for namespace in namespaces(tag) for pid in processes(namespace)]
    assert len(pids) >= 3
    process.send_signal(number)
    assert process.wait(timeout=300) != 0
    assert namespaces(tag) == []
    assert not (REGISTER / tag).exists()
    assert not any(map(alive, pids))
    assert mounts() == before


def test_what_a_killed_run_left_is_removed_by_the_next(nodes_possible: None, tmp_path: Path) -> None:
    process, tag = begin(tmp_path)
    pids = [pid for namespace in namespaces(tag) for pid in processes(namespace)]
    assert tag not in remove_dead(), "its owner lives"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(namespaces(tag)) == 3
    assert tag in remove_dead()
    assert namespaces(tag) == []
    assert not any(map(alive, pids))
