from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.launchers import check_world_size, expand_hosts
from dist_metaxlm.parallel.topology import Topology, detect_topology

NAMES = (
    "TORCHELASTIC_RUN_ID",
    "CROSS_RANK",
    "KUBERNETES_SERVICE_HOST",
    "PET_NNODES",
    "PET_NODE_RANK",
    "PET_NPROC_PER_NODE",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
    "JOB_COMPLETION_INDEX",
    "SLURM_NODEID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_NODELIST",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_STEP_NUM_TASKS",
    "DIST_METAXLM_HOSTS",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_SIZE",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_JOB_ID",
    "SLURM_NTASKS_PER_NODE",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
)


@pytest.fixture()
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        # setenv first, so that what detect_topology writes into os.environ is taken back after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_single_process(bare: pytest.MonkeyPatch) -> None:
    topology = detect_topology()
    assert (topology.rank, topology.world_size, topology.launcher, topology.is_first) == (0, 1, "single", True)


def test_deepspeed_and_torchrun_environment(bare: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "4",
        "CROSS_RANK": "1",
        "MASTER_ADDR": "node1",
        "DIST_METAXLM_HOSTS": "node1:4,node2:4",
    }.items():
        bare.setenv(name, value)
    topology = detect_topology()
    assert (topology.launcher, topology.node, topology.host(3), topology.host(4)) == ("deepspeed", 1, "node1", "node2")
    assert (topology.rank, topology.local_rank, topology.local_world_size, topology.nodes) == (5, 1, 4, 2)


def test_slurm(bare: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_NODEID": "1",
        "SLURM_STEP_ID": "0",
    }.items():
        bare.setenv(name, value)
    topology = detect_topology()
    assert (topology.hosts, topology.node, os.environ["MASTER_ADDR"]) == (("gpu07", "gpu08"), 1, "gpu07")
    assert 20000 <= int(os.environ["MASTER_PORT"]) < 32000
    assert (topology.rank, topology.world_size, topology.local_rank, topology.nodes) == (3, 4, 1, 2)
    assert topology.launcher == "slurm"


def test_uneven_nodes_under_slurm(bare: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_NTASKS": "5",
        "SLURM_PROCID": "4",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "2",
        "SLURM_STEPID": "0",
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_STEP_NODELIST": "a,b[1-2]-x",
    }.items():
        bare.setenv(name, value)
    topology = detect_topology()
    assert (topology.local_world_size, topology.node_of_ranks, topology.host(4)) == (1, (0, 0, 1, 1, 2), "b2-x")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b1", ["a", "b1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("", []),
    ],
)
def test_slurms_list_of_hosts(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    ("values", "place"),
    [
        (
            {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "m", "KUBERNETES_SERVICE_HOST": "k"},
            ("kubernetes", 2, 4, 0, 1, 4),
        ),
        (
            {"PET_NNODES": "4", "PET_NODE_RANK": "3", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "1"},
            ("kubernetes", 3, 4, 0, 1, 4),
        ),
        ({"PET_NNODES": "2:2", "PET_NODE_RANK": "1", "MASTER_ADDR": "m"}, ("kubernetes", 1, 2, 0, 1, 2)),
        ({"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "m"}, ("kubernetes", 1, 3, 0, 1, 3)),
        ({"JOB_COMPLETION_INDEX": "0"}, ("single", 0, 1, 0, 1, 1)),
        (
            {
                "TORCHELASTIC_RUN_ID": "none",
                "RANK": "5",
                "WORLD_SIZE": "8",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "m",
            },
            ("torchrun", 5, 8, 1, 2, 4),
        ),
    ],
)
def test_pods_and_torchrun(bare: pytest.MonkeyPatch, values: dict[str, str], place: tuple[object, ...]) -> None:
    for name, value in values.items():
        bare.setenv(name, value)
    found = detect_topology()
    assert (found.launcher, found.rank, found.world_size, found.local_rank, found.local_world_size, found.nodes) == place
    assert os.environ["RANK"] == str(place[1])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4", "PET_NPROC_PER_NODE": "2", "MASTER_ADDR": "m"}, "PET_NPROC_PER_NODE=2"),
        ({"PET_NNODES": "2:4", "PET_NODE_RANK": "1", "MASTER_ADDR": "m"}, "elastic number of nodes"),
        ({"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "m"}, "WORLD_SIZE is not"),
        ({"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2"}, "without MASTER_ADDR"),
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "m"},
            "LOCAL_RANK=3 does not fit LOCAL_WORLD_SIZE=2",
        ),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(y1)"}, "2(x3),1"),
        # What a batch script sees before any srun; then a shell of one task in an allocation of several.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "5"}, "SLURM_NTASKS=2 announces 2 tasks, but no srun"),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            "SLURM_STEP_NUM_TASKS=1; put `srun --ntasks=4` before the command",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "unset RANK and WORLD_SIZE for a single process"),
    ],
)
def test_variables_that_do_not_fit_are_refused(bare: pytest.MonkeyPatch, values: dict[str, str], words: str) -> None:
    for name, value in values.items():
        bare.setenv(name, value)
    with pytest.raises(UserError) as caught:
        detect_topology()
    assert words in str(caught.value)


def test_another_world_size_than_expected_is_refused() -> None:
    topology = Topology(0, 1, 0, 1, "single")
    check_world_size(topology, None)
    check_world_size(topology, 1)
    with pytest.raises(UserError, match=r"single started 1 rank on .* --expect_world_size is 2"):
        check_world_size(topology, 2)


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("2", "2"), ("-1", "2")])
def test_contradictions_are_refused(bare: pytest.MonkeyPatch, rank: str, size: str) -> None:
    bare.setenv("RANK", rank)
    bare.setenv("WORLD_SIZE", size)
    with pytest.raises(UserError, match="RANK="):
        detect_topology()


def test_mpi(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed; pip install mpich brings it")
    # A file a rank: mpirun may mix what two ranks print in the middle of a line.
    code = (
        "import pathlib, sys; from dist_metaxlm.parallel.topology import Topology, detect_topology as d; t = d(); "
        "pathlib.Path(sys.argv[1], str(t.rank)).write_text("
        "f'{t.launcher} {t.rank} {t.world_size} {t.local_rank} {t.local_world_size}')"
    )
    subprocess.run([mpirun, "-n", "2", sys.executable, "-c", code, str(tmp_path)], timeout=60, check=True)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["mpi 0 2 0 2", "mpi 1 2 1 2"]
