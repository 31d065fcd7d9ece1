"""Training jobs on the nodes of a test: their command lines, their losses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
LOGGED = 10
# The quickstart recipe with small batches: four ranks share two cores.
QUICK = (
    "phases.joint.steps=20",
    "training.log_interval=2",
    "training.checkpoint_interval=20",
    "phases.joint.learning_rate.warmup_steps=5",
    "phases.joint.objectives.mlm.batch_tokens=512",
    "phases.joint.objectives.tlm.batch_tokens=512",
    "phases.joint.objectives.contrast.pairs=8",
    "phases.joint.objectives.contrast.group=8",
    "phases.joint.objectives.contrast.max_tokens=16",
)


def joint(recipe: str | Path, run: Path, *more: str) -> list[str]:
    """The script and arguments of the phase `joint`."""
    return ["launch/pretrain.py", "--phase", "joint", "--recipe", str(recipe), "--run_dir", str(run), *more]


def train(cluster: Cluster, command: list[str], code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command on node1 from the checkout; it has to end with `code`."""
    result = cluster.run("node1", *command, cwd=ROOT, **environment)
    assert result.returncode == code, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result


def losses(run: Path, phase: str = "joint") -> list[dict[str, float]]:
    """All losses that a phase has logged."""
    return [json.loads(line)["losses"] for line in (run / phase / "metrics.jsonl").read_text().splitlines()]


def same(run: Path, reference: list[dict[str, float]]) -> None:
    """The losses of 20 steps equal those of one process."""
    found = losses(run)
    assert len(found) == len(reference) == LOGGED
    for ours, expected in zip(found, reference, strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


def hostfile(folder: Path, nodes: int, slots: int = 1) -> Path:
    """A hostfile of node1, node2, ..."""
    path = folder / "hosts"
    path.write_text("".join(f"node{number} slots={slots}\n" for number in range(1, nodes + 1)))
    return path


def start(folder: Path, nodes: int, script: list[str], *options: str, slots: int = 1) -> list[str]:
    """The command that starts a script on the first nodes."""
    return [PYTHON, "launch/nodes/start.py", "--hostfile", str(hostfile(folder, nodes, slots)), *options, "--", *script]


def mpi_library() -> str:
    """Folder of the mpich wheel's library, which a virtual environment that borrows its packages does not find by itself."""
    files = metadata.distribution("mpich").files or []
    found = next(file for file in files if re.fullmatch(r"libmpi\.so(\.\d+)*", file.name))
    return str(Path(str(found.locate())).resolve().parent)


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 900) -> None:
    """Wait until something has happened; the log is shown if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no output yet"
        time.sleep(0.2)
