"""What is refused on real nodes, in one sentence that names the node at fault; nobody trains then."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from jobs import PYTHON, ROOT, hostfile, joint, start, train

LINK, SLOW_LINK = 400.0, 40.0
"""Megabits a second: the link is what is slow then, not the two cores that all nodes share."""


def single(rank: int, port: int) -> dict[str, str]:
    """Variables of one rank of two; the other rank never starts."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": str(port),
        "DIST_METAXLM_HOSTS": "node1:1,node2:1",
    }


def test_a_node_that_does_not_come_is_named(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    command = [PYTHON, *joint(tiny_recipe, tmp_path / "run", "parallel.join_seconds=4")]
    result = train(cluster, command, 2, **single(0, 29511))
    assert "1 of 2 ranks did not join within 4 s: node2 (rank 1)" in result.stderr
    result = train(cluster, command, 2, **single(1, 29511))
    assert "node1 cannot reach the first node, node1, at node1:29511 within 4 s" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun"])
def test_a_node_without_a_cable_is_named_and_nothing_is_started(
    cluster: Cluster, tiny_recipe: Path, tmp_path: Path, launcher: str
) -> None:
    cluster.ssh_log.write_text("")
    cluster.cut("node2")
    try:
        result = train(cluster, start(tmp_path, 2, joint(tiny_recipe, tmp_path / "run"), "--launcher", launcher), 2)
    finally:
        cluster.cut("node2", up=True)
    assert "error: ssh does not reach node2: " in result.stderr
    calls = cluster.ssh_log.read_text().splitlines()
    assert sorted(call.rpartition(" -- ")[2] for call in calls) == ["node1 true", "node2 true"]
    assert not (tmp_path / "run").exists()


def test_wrong_jobs_contact_nobody(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    cluster.ssh_log.write_text("")
    result = train(cluster, start(tmp_path, 2, joint(tiny_recipe, tmp_path / "run", "parallel.tensor=2")), 2)
    assert "on node1, node2 (1 rank a node)" in result.stderr
    result = train(cluster, start(tmp_path, 2, joint(tiny_recipe, tmp_path / "run", "--expect_world_size", "3")), 2)
    assert "the hostfile has 2 slots" in result.stderr
    assert cluster.ssh_log.read_text() == ""
    result = train(cluster, [PYTHON, *joint(tiny_recipe, tmp_path / "run", "--expect_world_size", "2")], 2)
    assert "single started 1 rank on 1 node (node1), --expect_world_size is 2" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_taken_port_is_named_with_its_holder(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    code = (
        "import os, socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        "s.bind(('', 29512)); s.listen(); print(os.getpid(), flush=True); time.sleep(3600)"
    )
    holder = subprocess.Popen(cluster.inside("node1", [PYTHON, "-c", code]), stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        result = train(cluster, [PYTHON, *joint(tiny_recipe, tmp_path / "run")], 2, **single(0, 29512))
    finally:
        holder.terminate()
        holder.wait()
    assert f"port 29512 of node1 is taken by process {pid} (" in result.stderr


def test_a_rank_that_is_killed_is_named_and_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    # Without the peer monitor the others wait for ten minutes or more: pdsh does not end the other nodes.
    result = cluster.run("node1", *start(tmp_path, 3, ["tests/nodes/worker_death.py"]), cwd=ROOT, timeout=400)
    assert result.returncode != 0
    assert "error: rank 1 on node2 exited unexpectedly" in result.stdout + result.stderr


def preflight(cluster: Cluster, recipe: Path, hosts: Path, code: int) -> dict[str, Any]:
    command = [
        PYTHON,
        "launch/nodes/preflight.py",
        "--hostfile",
        str(hosts),
        "--recipe",
        str(recipe),
        "--json",
        "--megabytes",
        "4",
        "--seconds",
        "400",
    ]
    return dict(json.loads(train(cluster, command, code).stdout))


def refusals(result: dict[str, Any]) -> set[tuple[str, str]]:
    return {(f["check"], f["host"]) for f in result["findings"] if f["level"] == "refuse"}


def test_preflight_of_four_nodes(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    cluster.shape(LINK)
    try:
        result = preflight(cluster, tiny_recipe, hostfile(tmp_path, 4), 0)
        assert result["ok"]
        assert len(result["links"]["pairs_gbs"]) == 6
        assert {report["host"] for report in result["nodes"].values()} == {"node1", "node2", "node3", "node4"}
        cluster.shape(SLOW_LINK, "node3")
        assert refusals(preflight(cluster, tiny_recipe, hostfile(tmp_path, 4), 1)) == {("bandwidth", "node3")}
    finally:
        cluster.shape(None)


def test_preflight_names_the_dead_node(cluster: Cluster, tiny_recipe: Path, tmp_path: Path) -> None:
    cluster.cut("node2")
    try:
        result = preflight(cluster, tiny_recipe, hostfile(tmp_path, 3), 1)
    finally:
        cluster.cut("node2", up=True)
    assert [(f["check"], f["host"]) for f in result["findings"]] == [("reachable", "node2")]


def test_preflight_names_nodes_that_differ(nodes_possible: None, tiny_recipe: Path, tmp_path: Path) -> None:
    clock, package, recipe = tmp_path / "clock", tmp_path / "package" / "deepspeed-9.9.9.dist-info", tmp_path / "recipe.yaml"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() - 60\n")
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 9.9.9\n")
    recipe.write_text(tiny_recipe.read_text().replace("seed: 3", "seed: 4"))
    folder = tmp_path / "cluster"
    folder.mkdir()
    with Cluster(
        folder,
        4,
        {"node2": {"PYTHONPATH": str(package.parent)}, "node3": {"PYTHONPATH": str(clock)}},
        {"node4": {tiny_recipe: recipe}},
    ) as cluster:
        result = preflight(cluster, tiny_recipe, hostfile(tmp_path, 4), 1)
        two = tmp_path / "two"
        two.write_text("node1 slots=1\nnode4 slots=1\n")
        started = cluster.run(
            "node1",
            PYTHON,
            "launch/nodes/start.py",
            "--hostfile",
            str(two),
            "--",
            *joint(tiny_recipe, tmp_path / "run"),
            cwd=ROOT,
        )
    assert started.returncode != 0
    assert re.search(
        r"error: recipe is \w+ on node4 \(rank 1\) and \w+ on node1 \(rank 0\); copy the recipe file",
        started.stdout + started.stderr,
    )
    assert not (tmp_path / "run").exists()
    assert refusals(result) - {("bandwidth", f"node{n}") for n in (1, 2, 3, 4)} == {
        ("deepspeed", "node2"),
        ("clock", "node3"),
        ("recipe", "node4"),
    }
    messages = " ".join(f["message"] for f in result["findings"])
    assert "deepspeed is 9.9.9" in messages
    assert "off by -60" in messages
