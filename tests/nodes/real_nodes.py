"""Training on real nodes (network namespaces): every launcher against one process, refusals. `make test-nodes`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from cluster import PACKAGES, SLURM_PACKAGES, Cluster, missing  # noqa: E402
from conftest import prepare_tiny_recipe  # noqa: E402
from slurm import start_slurm  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
STEPS = ("phases.joint.steps=20", "training.checkpoint_interval=20")
pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no nodes here: {missing()}")
without_slurm = pytest.mark.skipif(missing({**PACKAGES, **SLURM_PACKAGES}) is not None,
                                   reason=str(missing({**PACKAGES, **SLURM_PACKAGES})))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), 4) as made:
        yield made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_tiny_recipe(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def slurm(cluster: Cluster) -> dict[str, str]:
    return start_slurm(cluster)


@pytest.fixture(scope="module")
def reference(cluster: Cluster, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Losses of one process without ZeRO."""
    run = tmp_path_factory.mktemp("reference")
    train(cluster, [PYTHON, *joint(recipe, run), "parallel.zero_stage=0"])
    return losses(run)


def joint(recipe: Path, run: Path, *more: str) -> list[str]:
    return ["launch/pretrain.py", "--phase", "joint", "--recipe", str(recipe), "--run_dir", str(run), *STEPS, *more]


def train(cluster: Cluster, command: list[str], code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    result = cluster.run("node1", *command, cwd=ROOT, **environment)
    assert result.returncode == code, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result


def losses(run: Path, phase: str = "joint") -> list[dict[str, float]]:
    return [json.loads(line)["losses"] for line in (run / phase / "metrics.jsonl").read_text().splitlines()]


def hostfile(folder: Path, nodes: int, slots: int = 1) -> Path:
    path = folder / "hosts"
    path.write_text("".join(f"node{number} slots={slots}\n" for number in range(1, nodes + 1)))
    return path


def start(folder: Path, nodes: int, script: list[str], *options: str, slots: int = 1) -> list[str]:
    return [PYTHON, "launch/nodes/start.py", "--hostfile", str(hostfile(folder, nodes, slots)), *options, "--", *script]


def same(run: Path, reference: list[dict[str, float]]) -> None:
    found = losses(run)
    assert len(found) == len(reference) == 10
    for ours, expected in zip(found, reference, strict=True):
        assert ours == pytest.approx(expected, rel=1e-5)


def mpi_library() -> str:
    """Folder of the mpich wheel's library, which a virtual environment that borrows its packages does not find by itself."""
    files = metadata.distribution("mpich").files or []
    found = next(file for file in files if re.fullmatch(r"libmpi\.so(\.\d+)*", file.name))
    return str(Path(str(found.locate())).resolve().parent)


def test_two_nodes_by_hostfile_with_tensor_groups_inside(cluster: Cluster, recipe: Path, tmp_path: Path,
                                                         reference: list[dict[str, float]]) -> None:
    script = joint(recipe, tmp_path / "run", "parallel.tensor=2")
    out = train(cluster, start(tmp_path, 2, script, slots=2)).stdout
    assert re.search(r"node1 +\|0 d0 t0 \|1 d0 t1", out)
    assert re.search(r"node2 +\|2 d1 t0 \|3 d1 t1", out)
    assert "4 ranks on 2 node(s)" in out
    assert "GLOO_SOCKET_IFNAME=eth0" in out
    same(tmp_path / "run", reference)


def test_four_nodes_by_hostfile_in_the_order_of_their_racks(cluster: Cluster, recipe: Path, tmp_path: Path,
                                                            reference: list[dict[str, float]]) -> None:
    racks = tmp_path / "racks"
    racks.write_text("node1 a\nnode2 b\nnode3 a\nnode4 b\n")
    out = train(cluster, start(tmp_path, 4, joint(recipe, tmp_path / "run"), "--topology", str(racks))).stdout
    shown = re.findall(r"(node\d) +\|(\d) d", out)
    assert {rank: node for node, rank in shown} == {"0": "node1", "1": "node3", "2": "node2", "3": "node4"}
    same(tmp_path / "run", reference)


def test_two_nodes_by_mpi(cluster: Cluster, recipe: Path, tmp_path: Path, reference: list[dict[str, float]]) -> None:
    command = start(tmp_path, 2, joint(recipe, tmp_path / "run"), "--launcher", "mpirun")
    out = train(cluster, command, LD_LIBRARY_PATH=mpi_library()).stdout
    assert "started by mpi" in out
    assert re.search(r"node2 +\|1 d1", out)
    same(tmp_path / "run", reference)


def test_two_nodes_by_torchrun_on_each(cluster: Cluster, recipe: Path, tmp_path: Path,
                                       reference: list[dict[str, float]]) -> None:
    command = start(tmp_path, 2, joint(recipe, tmp_path / "run"), "--launcher", "torchrun")
    second = subprocess.Popen(cluster.inside("node2", command), env=cluster.environment(), cwd=ROOT, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = train(cluster, command).stdout
    assert second.wait(timeout=120) == 0
    assert "started by torchrun" in out
    same(tmp_path / "run", reference)


@without_slurm
def test_two_nodes_by_srun(cluster: Cluster, recipe: Path, tmp_path: Path, reference: list[dict[str, float]],
                           slurm: dict[str, str]) -> None:
    command = start(tmp_path, 2, joint(recipe, tmp_path / "run"), "--launcher", "srun")
    out = train(cluster, command, **slurm).stdout
    assert "started by slurm" in out
    assert re.search(r"node2 +\|1 d1", out)
    same(tmp_path / "run", reference)


@without_slurm
def test_sbatch_runs_both_phases_and_goes_back_into_the_queue_when_asked(cluster: Cluster, recipe: Path, tmp_path: Path,
                                                                         slurm: dict[str, str]) -> None:
    def command(*words: str) -> str:
        return train(cluster, list(words), **slurm, PYTHON=PYTHON).stdout

    # The checkpoint interval is longer than the phase: only the signal makes one in the middle.
    steps = ("phases.meta.steps=30", "training.checkpoint_interval=100")
    job = command("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/job.out",
                  "launch/nodes/slurm.sbatch", "--recipe", str(recipe), "--run_dir", str(tmp_path / "run"), *steps).strip()
    metrics, log = tmp_path / "run" / "meta" / "metrics.jsonl", tmp_path / "job.out"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 1, log)
    command("scancel", "--signal=USR1", job)
    wait_for(lambda: "goes back into the queue" in log.read_text(), log)
    # Slurm lets a job wait for two minutes before it starts again; some seconds will do. At once would be too early: the
    # nodes still refuse what the first start was allowed, and Slurm ends a job that they refuse.
    wait_for(lambda: "Restarts=1" in command("scontrol", "show", "job", job), log)
    wait_for(lambda: "JobState=PENDING" in command("scontrol", "show", "job", job), log)
    command("scontrol", "update", f"JobId={job}", "StartTime=now+10")
    wait_for(lambda: (tmp_path / "run" / "cross" / "done.json").is_file(), log)
    text = log.read_text()
    assert text.count("resuming after step") == 1
    assert "phase meta finished: 30 steps" in text
    assert json.loads((tmp_path / "run" / "cross" / "done.json").read_text())["ranks"] == 2


def wait_for(condition: object, log: Path, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, log.read_text() if log.is_file() else "no output yet"
        time.sleep(0.2)


def test_a_node_that_does_not_come_is_named(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "node1",
                 "MASTER_PORT": "29511", "DIST_METAXLM_HOSTS": "node1:1,node2:1"}
    result = train(cluster, [PYTHON, *joint(recipe, tmp_path / "run", "parallel.join_seconds=4")], 2, **variables)
    assert "1 of 2 ranks did not come within 4 s: node2 (rank 1)" in result.stderr
    variables["RANK"] = "1"
    result = train(cluster, [PYTHON, *joint(recipe, tmp_path / "run", "parallel.join_seconds=4")], 2, **variables)
    assert "node1 cannot reach the first node, node1, at node1:29511 within 4 s" in result.stderr


def test_a_taken_port_is_named_with_its_holder(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    code = ("import os, socket, time; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
            "s.bind(('', 29512)); s.listen(); print(os.getpid(), flush=True); time.sleep(600)")
    holder = subprocess.Popen(cluster.inside("node1", [PYTHON, "-c", code]), stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "node1",
                     "MASTER_PORT": "29512"}
        result = train(cluster, [PYTHON, *joint(recipe, tmp_path / "run")], 2, **variables)
    finally:
        holder.terminate()
        holder.wait()
    assert f"port 29512 of node1 is taken by process {pid} (" in result.stderr


def test_another_number_of_ranks_than_expected_is_refused(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    result = train(cluster, [PYTHON, *joint(recipe, tmp_path / "run", "--expect_world_size", "2")], 2)
    assert "single started 1 rank(s) on 1 node(s) (node1), --expect_world_size 2 was asked for" in result.stderr
    assert not (tmp_path / "run").exists()


def preflight(cluster: Cluster, recipe: Path, hosts: Path, code: int) -> dict[str, object]:
    command = [PYTHON, "launch/nodes/preflight.py", "--hostfile", str(hosts), "--recipe", str(recipe), "--json",
               "--megabytes", "4"]
    return dict(json.loads(train(cluster, command, code).stdout))


def test_preflight_of_four_nodes(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    result = preflight(cluster, recipe, hostfile(tmp_path, 4), 0)
    assert result["ok"]
    assert len(result["links"]["pairs_gbs"]) == 6  # type: ignore[index, call-overload]
    assert {report["host"] for report in result["nodes"].values()} == {"node1", "node2", "node3", "node4"}  # type: ignore


def test_preflight_names_the_slow_node_and_the_dead_one(cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    shape = ("tc", "-n", cluster.namespace("node3"), "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "80mbit", "burst",
             "64kb", "latency", "400ms")
    if subprocess.run(shape, capture_output=True, check=False).returncode == 0:
        result = preflight(cluster, recipe, hostfile(tmp_path, 4), 1)
        subprocess.run(("tc", "-n", cluster.namespace("node3"), "qdisc", "del", "dev", "eth0", "root"), check=True)
        assert [(f["check"], f["host"]) for f in result["findings"] if f["level"] == "refuse"] == [  # type: ignore
            ("bandwidth", "node3")]
    cluster.cut("node2")
    try:
        result = preflight(cluster, recipe, hostfile(tmp_path, 3), 1)
    finally:
        cluster.cut("node2", up=True)
    assert [(f["check"], f["host"]) for f in result["findings"]] == [("reachable", "node2")]  # type: ignore


def test_preflight_names_nodes_that_differ(recipe: Path, tmp_path: Path) -> None:
    clock, package = tmp_path / "clock", tmp_path / "package" / "deepspeed-9.9.9.dist-info"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() - 60\n")
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 9.9.9\n")
    other = tmp_path / "cluster"
    other.mkdir()
    changes = {"node2": {"PYTHONPATH": str(package.parent)}, "node3": {"PYTHONPATH": str(clock)}}
    with Cluster(other, 3, changes) as cluster:
        result = preflight(cluster, recipe, hostfile(tmp_path, 3), 1)
    found = {(f["check"], f["host"]) for f in result["findings"] if f["level"] == "refuse"}  # type: ignore
    assert found == {("deepspeed", "node2"), ("clock", "node3")}
    messages = " ".join(f["message"] for f in result["findings"])  # type: ignore
    assert "deepspeed is 9.9.9" in messages
    assert "off by -60" in messages
