"""launch/nodes/start.py: what it refuses before any host is contacted, and what it would start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.launching.commands import for_pdsh, make_job, mpirun_command, srun_command, torchrun_commands
from dist_metaxlm.launching.hostfile import Host
from dist_metaxlm.launching.launch_job import Request, start
from dist_metaxlm.parallel.environment import forwarded, interface_addresses, interface_towards

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = str(ROOT / "launch" / "pretrain.py")
HOSTS = (Host("node1", 2), Host("node2", 2))


@pytest.fixture()
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log that commands named ssh, pdsh, mpirun and srun on the path would write their arguments to."""
    log = tmp_path / "calls.log"
    for name in ("ssh", "pdsh", "mpirun", "srun", "deepspeed"):
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f'#!/bin/sh\necho "$0 $@" >> {log}\n')
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return log


def request(hostfile: Path, *script: str, launcher: str = "deepspeed", topology: str | None = None) -> Request:
    return Request(str(hostfile), launcher, topology, 29500, False, script or (PRETRAIN, "--phase", "meta"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("", "names no host"),
        ("a slots=1\na slots=1\n", "line 2"),
        ("a slots=-1\n", "line 1"),
        ("a b slots=1\n", "line 1"),
        ("\ufeffa slots=1\n", "byte-order mark"),
        ("a slots=1\r\n", "carriage return"),
        ("-oProxyCommand=id slots=1\n", "option"),
        ("host;id slots=1\n", "not a host name"),
    ],
)
def test_bad_hostfiles_reach_nobody(tmp_path: Path, calls: Path, content: str | None, words: str) -> None:
    hostfile = tmp_path / "hosts"
    if content is not None:
        hostfile.write_bytes(content.encode())
    with pytest.raises(UserError) as caught:
        start(request(hostfile))
    assert words in str(caught.value)
    assert str(hostfile) in str(caught.value)
    assert not calls.exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ((PRETRAIN, "--phase", "meta", "parallel.tensor=2"), "parallel.tensor_across_nodes=true"),
        ((PRETRAIN, "--phase", "meta", "sead=3"), "did you mean seed"),
        ((PRETRAIN, "--phase", "mta"), "no phase 'mta', did you mean meta?"),
        (
            (PRETRAIN, "--phase", "meta", "--recipie", "mine.yaml"),
            "pretrain.py has no option --recipie, did you mean --recipe?",
        ),
        ((PRETRAIN, "seed=2"), "pretrain.py needs --phase"),
        ((PRETRAIN, "--phase", "meta", "here"), "'here' is not of the form key=value"),
        ((PRETRAIN, "--phase", "meta", "--deepspeed_config", "nowhere.json"), "nowhere.json: no such file"),
        ((PRETRAIN, "--phase", "meta", "--expect_world_size", "3"), "hostfile has 2 slots"),
        ((PRETRAIN, "--phase", "meta", "phases.meta.objectives=[{name: mlm, batch_tokens: 128}]"), "ranks"),
        (("nowhere.py",), "is not a file"),
        ((PRETRAIN, "--phase", "meta", "name=a\nb"), "control character"),
    ],
)
def test_bad_jobs_reach_nobody(tmp_path: Path, calls: Path, script: tuple[str, ...], words: str) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    with pytest.raises(UserError) as caught:
        start(request(hostfile, *script))
    assert words in str(caught.value)
    assert not calls.exists()


@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun", "srun", "torchrun"])
def test_a_dry_run_shows_all_and_starts_nothing(tmp_path: Path, calls: Path, launcher: str) -> None:
    hostfile, topology, lines = tmp_path / "hosts", tmp_path / "racks", []
    hostfile.write_text("node1 slots=2\nnode2 slots=2\n")
    topology.write_text("node1 r1\nnode2 r1\n")
    script = (PRETRAIN, "--phase", "meta", "parallel.tensor=2")
    start(Request(str(hostfile), launcher, str(topology) if launcher != "srun" else None, 29600, True, script), lines.append)
    text = "\n".join(lines)
    assert "4 ranks on 2 nodes, meeting at node1:29600" in text
    assert "node2: node 1, ranks 2-3" in text
    assert "node2 |2 d1 t0 |3 d1 t1" in text
    assert "--expect_world_size 4" in text
    assert "DIST_METAXLM_HOSTS=node1:2,node2:2" in text
    assert not calls.exists()
    if launcher == "torchrun":
        assert "on node2: " in text
        assert "--node_rank 1" in text


def test_the_launcher_takes_over_with_what_was_checked(tmp_path: Path) -> None:
    hostfile, fake = tmp_path / "hosts", tmp_path / "bin" / "pdsh"
    hostfile.write_text("node1 slots=1\nnode2 slots=2\n")
    fake.parent.mkdir()
    for name in ("pdsh", "ssh"):
        fake.with_name(name).write_text(
            f"#!{sys.executable}\nimport json, sys\nfrom pathlib import Path\n"
            f"log = Path({str(tmp_path)!r}, 'calls'); log.open('a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        )
        fake.with_name(name).chmod(0o755)
    script = tmp_path / "job.py"
    script.write_text("")
    environment = {
        **os.environ,
        "PATH": f"{fake.parent}:{os.environ['PATH']}",
        "NCCL_DEBUG": "INFO",
        "SECRET_TOKEN": "hush",
        "MLFLOW_TRACKING_PASSWORD": "hush",
        "DS_ACCELERATOR": "cpu",
    }
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "launch" / "nodes" / "start.py"),
            "--hostfile",
            str(hostfile),
            "--",
            str(script),
            "a;b",
            "x=[{name: $(id)}]",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *_, launched = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    line = " ".join(launched)
    assert "node1,node2" in line
    assert "export NCCL_DEBUG=INFO;" in line
    assert "hush" not in line + result.stdout
    assert launched[-2:] == ["'a;b'", '"x=[{name: \\$(id)}]"']


def test_a_host_that_ssh_does_not_reach_stops_all(tmp_path: Path, calls: Path) -> None:
    (tmp_path / "bin" / "ssh").write_text(
        '#!/bin/sh\ncase "$*" in *node2*) echo "ssh: connect to host node2: No route to host" >&2; exit 255;; esac\n'
    )
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    for launcher in ("deepspeed", "mpirun"):
        with pytest.raises(UserError, match="ssh does not reach node2: ssh: connect to host node2: No route to host; "):
            start(request(hostfile, launcher=launcher))
    assert not calls.exists()


def test_pretrain_shows_its_place_and_counts_ranks_before_anything_starts(tmp_path: Path) -> None:
    command = [sys.executable, PRETRAIN, "--phase", "meta", "--run_dir", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    shown = subprocess.run([*command, "--dry_run"], capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert "placement: 1 node, tensor 1 x pipeline 1 x data 1" in shown.stdout
    refused = subprocess.run(
        [*command, "--expect_world_size", "4"], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert refused.returncode == 2
    assert "--expect_world_size is 4" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "word",
    [
        "plain",
        "a b",
        "a;b",
        "$(id)",
        "a $HOME",
        'say "x y"',
        "it's",
        "back\\slash and space",
        "`id` x",
        "[{name: mlm, tokens: 3}]",
    ],
)
def test_arguments_reach_the_other_nodes_shell_unchanged(word: str) -> None:
    ours = for_pdsh(word)
    joined = '"{}"'.format(ours.replace('"', '\\"')) if " " in ours else ours  # what DeepSpeed's pdsh runner does
    shown = subprocess.run(["sh", "-c", f"printf %s {joined}"], capture_output=True, text=True, check=True).stdout
    assert shown == word


def test_commands_of_the_other_launchers(monkeypatch: pytest.MonkeyPatch, calls: Path) -> None:
    job = make_job(HOSTS, (PRETRAIN, "--phase", "meta"), 29500, {"NCCL_DEBUG": "WARN", "HF_TOKEN": "hush"})
    assert [job.environment.get(name) for name in ("NCCL_DEBUG", "HF_TOKEN")] == ["WARN", None]
    assert "node1:2,node2:2" in mpirun_command(job)
    words = srun_command(job)
    assert {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--nodelist=node1,node2"} <= set(words)
    assert [line[line.index("--node_rank") + 1] for line in torchrun_commands(job).values()] == ["0", "1"]
    with pytest.raises(UserError, match="the same number of ranks"):
        srun_command(make_job((Host("a", 1), Host("b", 2)), (PRETRAIN,), 29500, {}))


def test_only_listed_variables_are_forwarded() -> None:
    assert forwarded({"NCCL_IB_HCA": "mlx5_0", "AWS_SECRET": "x", "OMP_NUM_THREADS": "4"}) == {
        "NCCL_IB_HCA": "mlx5_0",
        "OMP_NUM_THREADS": "4",
    }
    with pytest.raises(UserError, match="NCCL_DEBUG holds the character"):
        forwarded({"NCCL_DEBUG": "$(id)"})


def test_the_interface_towards_a_host() -> None:
    addresses = interface_addresses()
    outward = [name for name, address in addresses.items() if not address.startswith("127.")]
    if outward:
        assert interface_towards("127.0.0.1") == outward[0]
    with pytest.raises(UserError, match=r"has no route to the first node 'no-such-host\.invalid'"):
        interface_towards("no-such-host.invalid")
