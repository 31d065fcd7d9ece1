from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.topology import detect_topology

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS",
         "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_NTASKS_PER_NODE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


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
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}.items():
        bare.setenv(name, value)
    topology = detect_topology()
    assert (topology.rank, topology.local_rank, topology.local_world_size, topology.nodes) == (5, 1, 4, 2)


def test_slurm(bare: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
                        "SLURM_NTASKS_PER_NODE": "2"}.items():
        bare.setenv(name, value)
    topology = detect_topology()
    assert (topology.rank, topology.world_size, topology.local_rank, topology.nodes) == (3, 4, 1, 2)
    assert topology.launcher == "slurm"


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
    code = ("import pathlib, sys; from dist_metaxlm.parallel.topology import detect_topology as d; t = d(); "
            "pathlib.Path(sys.argv[1], str(t.rank)).write_text("
            "f'{t.launcher} {t.rank} {t.world_size} {t.local_rank} {t.local_world_size}')")
    subprocess.run([mpirun, "-n", "2", sys.executable, "-c", code, str(tmp_path)], timeout=60, check=True)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["mpi 0 2 0 2", "mpi 1 2 1 2"]
