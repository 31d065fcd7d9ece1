"""Training on real nodes: the quickstart recipe under every launcher has the losses of one process. `make test-nodes`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from cluster import Cluster
from jobs import ROOT, joint, mpi_library, same, start, train

Losses = list[dict[str, float]]


def test_two_nodes_by_hostfile_with_tensor_groups_inside(
    cluster: Cluster, quick: tuple[str, ...], tmp_path: Path, reference: Losses
) -> None:
    script = joint("quickstart", tmp_path / "run", *quick, "parallel.tensor=2")
    out = train(cluster, start(tmp_path, 2, script, slots=2)).stdout
    assert re.search(r"node1 +\|0 d0 t0 \|1 d0 t1", out)
    assert re.search(r"node2 +\|2 d1 t0 \|3 d1 t1", out)
    assert "4 ranks on 2 nodes" in out
    assert "GLOO_SOCKET_IFNAME=eth0" in out
    same(tmp_path / "run", reference)


def test_tensor_groups_inside_nodes_and_pipeline_stages_across(
    cluster: Cluster, quick: tuple[str, ...], tmp_path: Path, reference: Losses
) -> None:
    script = joint("quickstart", tmp_path / "run", *quick, "parallel.tensor=2", "parallel.pipeline=2")
    out = train(cluster, start(tmp_path, 2, script, slots=2)).stdout
    assert "tensor 2 x pipeline 2 x data 1" in out
    assert re.search(r"node1 +\|0 s0 d0 t0 \|1 s0 d0 t1", out)
    assert re.search(r"node2 +\|2 s1 d0 t0 \|3 s1 d0 t1", out)
    assert "tensor groups talk inside nodes" in out
    same(tmp_path / "run", reference)


def test_four_nodes_by_hostfile_in_the_order_of_their_racks(
    cluster: Cluster, quick: tuple[str, ...], tmp_path: Path, reference: Losses
) -> None:
    racks = tmp_path / "racks"
    racks.write_text("node1 a\nnode2 b\nnode3 a\nnode4 b\n")
    script = joint("quickstart", tmp_path / "run", *quick)
    out = train(cluster, start(tmp_path, 4, script, "--topology", str(racks))).stdout
    shown = re.findall(r"(node\d) +\|(\d) d", out)
    assert {rank: node for node, rank in shown} == {"0": "node1", "1": "node3", "2": "node2", "3": "node4"}
    same(tmp_path / "run", reference)


def test_two_nodes_by_mpi(cluster: Cluster, quick: tuple[str, ...], tmp_path: Path, reference: Losses) -> None:
    command = start(tmp_path, 2, joint("quickstart", tmp_path / "run", *quick), "--launcher", "mpirun")
    out = train(cluster, command, LD_LIBRARY_PATH=mpi_library()).stdout
    assert "started by mpi" in out
    assert re.search(r"node2 +\|1 d1", out)
    same(tmp_path / "run", reference)


def test_two_nodes_by_torchrun_on_each(cluster: Cluster, quick: tuple[str, ...], tmp_path: Path, reference: Losses) -> None:
    command = start(tmp_path, 2, joint("quickstart", tmp_path / "run", *quick), "--launcher", "torchrun")
    second = subprocess.Popen(
        cluster.inside("node2", command),
        env=cluster.environment(),
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    out = train(cluster, command).stdout
    assert second.wait(timeout=600) == 0
    assert "started by torchrun" in out
    same(tmp_path / "run", reference)


def test_two_nodes_by_srun(
    cluster: Cluster, quick: tuple[str, ...], tmp_path: Path, reference: Losses, slurm: dict[str, str]
) -> None:
    command = start(tmp_path, 2, joint("quickstart", tmp_path / "run", *quick), "--launcher", "srun")
    out = train(cluster, command, **slurm).stdout
    assert "started by slurm" in out
    assert re.search(r"node2 +\|1 d1", out)
    same(tmp_path / "run", reference)
