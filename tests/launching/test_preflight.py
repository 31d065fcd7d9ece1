from __future__ import annotations

import copy
import socket
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_metaxlm.launching.hostfile import Host
from dist_metaxlm.launching.preflight.agent import MARK
from dist_metaxlm.launching.preflight.checks import evaluate_checks, judge_links
from dist_metaxlm.launching.preflight.facts import collect, product_is_right
from dist_metaxlm.launching.preflight.links import rounds
from dist_metaxlm.launching.preflight.remote import Agent, Unanswered
from dist_metaxlm.launching.preflight.run import report_lines
from dist_metaxlm.parallel.processes import holder

HOSTS = [Host(f"node{n}", 2) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What a healthy node with devices says."""
    found = collect("quickstart", [], None, 0)
    device = {"name": "H100", "healthy": True, "free_gb": 79.0, "total_gb": 80.0, "errors": 0}
    return {
        **found,
        "devices": [device, dict(device)],
        "clock_offset": 0.01,
        "free_gb": {"data": 50.0, "run": 50.0, "shm": 8.0},
        "limits": {"open files": 65536, "locked memory": -1},
        "port": "free",
    }


def reports(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {host.name: copy.deepcopy(facts) for host in HOSTS}
    for name, report in found.items():
        report["host"] = name
    return found


def test_facts_of_this_machine(facts: dict[str, Any]) -> None:
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__.startswith(
        facts["versions"]["torch"]
    )
    assert len(facts["checksums"]["recipe"]) == len(facts["checksums"]["code"]) == 64
    assert collect("quickstart", ["seed=9"], None, 0)["checksums"]["recipe"] != facts["checksums"]["recipe"]
    assert product_is_right(torch.device("cpu"))


def test_like_nodes_have_nothing_wrong(facts: dict[str, Any]) -> None:
    assert evaluate_checks(HOSTS, reports(facts), 5.0) == []


@pytest.mark.parametrize(
    ("path", "value", "level", "words"),
    [
        (("versions", "deepspeed"), "9.9.9", "refuse", "deepspeed is 9.9.9, on node1 and others it is"),
        (("python",), "3.9.1", "refuse", "python is 3.9.1"),
        (("driver",), "535.1", "refuse", "driver is 535.1"),
        (("checksums", "recipe"), "abc", "refuse", "recipe is abc"),
        (("checksums", "data"), "abc", "refuse", "data is abc"),
        (("checksums", "tokenizer"), "abc", "refuse", "tokenizer is abc"),
        (("checksums", "code"), "abc", "refuse", "code is abc"),
        (("clock_offset",), -60.0, "refuse", "its clock is off by -60.0 s"),
        (("clock_offset",), 2.0, "warn", "off by +2.0 s"),
        (("free_gb", "run"), 1.0, "refuse", "1.0 GB are free for run"),
        (("free_gb", "shm"), 0.06, "warn", "/dev/shm has 0.06"),
        (("limits", "open files"), 1024, "warn", "1024 open files"),
        (("limits", "locked memory"), 64, "warn", "RDMA"),
        (("devices", 1, "healthy"), False, "refuse", "device 1 (H100) fails"),
        (("devices", 0, "free_gb"), 3.0, "warn", "3.0 of 80"),
        (("devices", 0, "errors"), 4, "warn", "4 uncorrected memory errors"),
        (("devices",), [], "refuse", "no device"),
    ],
)
def test_the_node_at_fault_is_named(
    facts: dict[str, Any], path: tuple[Any, ...], value: Any, level: str, words: str
) -> None:
    found = reports(facts)
    place = found["node2"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    findings = evaluate_checks(HOSTS, found, 5.0)
    assert [(finding.host, finding.level) for finding in findings] == [("node2", level)]
    assert words in findings[0].message
    assert findings[0].remedy


def test_ports_few_devices_and_one_machine_twice(facts: dict[str, Any]) -> None:
    found = reports(facts)
    found["node1"]["port"] = "process 7 (python)"
    found["node3"] |= {"host": "node2"}
    findings = evaluate_checks([*HOSTS[:2], Host("node3", 4)], found, 5.0)
    assert {(f.host, f.check) for f in findings} == {("node1", "port"), ("node3", "hosts"), ("node3", "devices")}


def test_slow_links_are_named_by_their_node() -> None:
    names = [f"node{n}" for n in range(1, 6)]
    pairs = {(a, b): 1.0 if 3 in (a, b) else 10.0 for a, b in combinations(range(5), 2)}
    assert [finding.host for finding in judge_links(names, pairs)] == ["node4"]
    assert judge_links(names, dict.fromkeys(pairs, 3.0)) == []
    assert judge_links(names[:2], {(0, 1): 1.0}) == []


@pytest.mark.parametrize("nodes", [2, 3, 4, 7, 8])
def test_every_pair_meets_once_and_nobody_twice_in_a_round(nodes: int) -> None:
    plan = rounds(nodes)
    assert sorted(pair for pairs in plan for pair in pairs) == list(combinations(range(nodes), 2))
    for pairs in plan:
        members = [member for pair in pairs for member in pair]
        assert len(members) == len(set(members))


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (folder / "ssh").write_text(f"#!/bin/sh\necho welcome to this machine\n{body}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_an_agent_is_asked_through_the_noise_of_a_login_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(
        tmp_path,
        monkeypatch,
        f"""echo "$@" > {tmp_path}/words; echo '{MARK}{{"ready": true}}'
while read line; do echo '{MARK}{{"clock": 100.0}}'; done""",
    )
    agent = Agent("node7", ["python", "preflight.py"])
    assert agent.answer(10.0) == {"ready": True}
    assert agent.clock_offset() < -1e9
    agent.close()
    words = (tmp_path / "words").read_text()
    assert "-o BatchMode=yes" in words
    assert "-- node7 cd" in words


def test_a_node_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, monkeypatch, "echo 'ssh: connect to host node7 port 22: No route to host' >&2; exit 255")
    agent = Agent("node7", ["python", "preflight.py"])
    with pytest.raises(Unanswered, match="No route to host"):
        agent.answer(10.0)
    agent.close()
    fake_ssh(tmp_path, monkeypatch, "exec sleep 60")
    agent = Agent("node7", ["python", "preflight.py"])
    with pytest.raises(Unanswered, match=r"no answer within 0 s"):
        agent.answer(0.2)
    agent.close()


def test_the_table_has_a_line_for_every_node_and_finding(facts: dict[str, Any]) -> None:
    found = reports(facts)
    found["node2"]["clock_offset"] = 60.0
    del found["node3"]
    findings = [finding.as_dict() for finding in evaluate_checks(HOSTS, found, 5.0)]
    links = {"median_gbs": 1.0, "all_reduce_gbs": 0.5, "by_node_gbs": {"node1": 1.0, "node2": 1.0}}
    lines = report_lines(
        {
            "ok": False,
            "seconds": 3.0,
            "nodes": found,
            "links": links,
            "findings": findings,
            "hosts": {host.name: 2 for host in HOSTS},
        }
    )
    assert lines[1].startswith("node1")
    assert lines[1].endswith("ok")
    assert "+60.00 s" in lines[2]
    assert lines[3].endswith("NO")
    assert "refuse: node2: its clock is off by +60.0 s; start chronyd or ntpd on it" in lines
    assert lines[-1] == "not ready (3.0 s)"


def test_the_holder_of_a_port_is_named() -> None:
    import os

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert holder(port).startswith(f"process {os.getpid()} (")
    assert holder(port) == "a process that has just ended"
