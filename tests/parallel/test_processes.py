from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_metaxlm.parallel.launchers import BY_HAND_SECONDS, join_limit
from dist_metaxlm.parallel.processes import has_peer, sees_all_processes, started_with
from dist_metaxlm.parallel.topology import Topology

CHECK = """
import sys, time
from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.launchers import check_peers
from dist_metaxlm.parallel.topology import detect_topology
began = time.monotonic()
try:
    check_peers(detect_topology(), float(sys.argv[1]))
    print("ok", time.monotonic() - began)
except UserError as error:
    print(error)
"""
RANK_OF_TWO = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29599"}
TASK_OF_TWO = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_ID": "991",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "node1",
}


def check(seconds: float, variables: dict[str, str], code: str = CHECK) -> str:
    """What `check_peers` says in a process with these variables."""
    own = ("SLURM", "PMI", "OMPI", "TORCHELASTIC", "CROSS", "LOCAL_", "RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(seconds)], env=environment | variables, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture()
def process() -> Callable[[dict[str, str]], None]:
    """Starts a process with some variables, which never joins anything; it is ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(variables: dict[str, str]) -> None:
        started.append(subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"]} | variables))
        time.sleep(0.2)  # until it has replaced the copy of this process

    yield start  # type: ignore[misc]
    for one in started:
        one.kill()
        one.wait()


@pytest.mark.parametrize(
    ("variables", "other", "announced"),
    [
        (RANK_OF_TWO, {"RANK": "1"}, "RANK=0 and WORLD_SIZE=2 announce 2 ranks"),
        (
            RANK_OF_TWO | {"LOCAL_RANK": "0", "MASTER_ADDR": "node7"},
            {"RANK": "1"},
            "RANK=0 and WORLD_SIZE=2 announce 2 ranks",
        ),
        (TASK_OF_TWO, {"SLURM_PROCID": "1"}, "SLURM_NTASKS=2 announces 2 tasks"),
    ],
    ids=["shell", "local ranks", "slurm"],
)
def test_a_rank_whose_peers_were_never_started_is_refused(
    variables: dict[str, str], other: dict[str, str], announced: str, process: Callable[[dict[str, str]], None]
) -> None:
    if "SLURM_PROCID" in variables and not sees_all_processes():
        pytest.skip("tasks of Slurm may each be in a container of their own, as this test is")
    process({**variables, **other, "WORLD_SIZE": "3", "SLURM_JOB_ID": "992"})  # a rank of another job
    said = check(0.6, variables)
    assert said.startswith(f"{announced}, but this process is the only one of them on ")
    assert "for a single process, " in said
    # A peer that is slow to join is a process already: any time limit will do.
    process({**variables, **other})
    assert check(0.0, variables).startswith("ok")


def test_ranks_that_need_not_be_on_this_machine_are_not_looked_for() -> None:
    elsewhere = RANK_OF_TWO | {"MASTER_ADDR": "node7"}
    assert check(0.0, elsewhere).startswith("ok")
    assert check(0.0, RANK_OF_TWO | {"KUBERNETES_SERVICE_HOST": "k"}).startswith("ok")
    # Variables that the process has set itself, as the workers of torch.multiprocessing.spawn do.
    code = f"import os; os.environ.update({RANK_OF_TWO!r})\n{CHECK}"
    assert check(0.0, {}, code).startswith("ok")


def test_ranks_without_a_launcher_wait_for_a_shorter_time_unless_it_was_chosen() -> None:
    by_hand, launched = Topology(0, 2, 0, 1, "shell"), Topology(0, 2, 0, 1, "torchrun")
    assert join_limit(by_hand, 300.0, chosen=False) == BY_HAND_SECONDS
    assert join_limit(by_hand, 300.0, chosen=True) == join_limit(launched, 300.0, chosen=False) == 300.0


def test_variables_are_read_from_proc(tmp_path: Path) -> None:
    for name, text in {"self": "RANK=0\0JOB=7\0", "11": "RANK=0\0JOB=7\0", "12": "RANK=1\0JOB=8\0"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "environ").write_text(text)
    (tmp_path / "13").mkdir()  # of another user, or ended
    assert started_with(["RANK", "OTHER"], tmp_path) == {"RANK": "0"}
    assert not has_peer("RANK", ["JOB"], tmp_path)
    (tmp_path / "12" / "environ").write_text("RANK=1\0JOB=7\0")
    assert has_peer("RANK", ["JOB"], tmp_path)
    assert not has_peer("RANK", ["JOB"], tmp_path / "11")
