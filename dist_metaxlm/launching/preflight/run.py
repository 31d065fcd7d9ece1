"""The whole preflight: queries all nodes in parallel, compares them, measures the links, reports problems and remedies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from dist_metaxlm.launching.hostfile import read_hostfile
from dist_metaxlm.launching.preflight.checks import Finding, evaluate_checks, judge_links
from dist_metaxlm.launching.preflight.remote import Agent, Unanswered


@dataclass(frozen=True)
class Wanted:
    """The command line of `metaxlm preflight`."""

    hostfile: str
    recipe: str
    overrides: tuple[str, ...]
    run_dir: str | None
    port: int
    min_free_gb: float
    megabytes: float
    seconds: float
    """How long each question may take."""


def preflight(wanted: Wanted, program: Sequence[str]) -> dict[str, Any]:
    """All facts, bandwidths and findings; `ok` says whether a run may start.

    `program`: command that starts `metaxlm preflight` on this machine and on every node.

    Raises:
        UserError: when the hostfile is wrong.
    """
    started = time.monotonic()
    hosts = read_hostfile(wanted.hostfile)
    agents = {host.name: Agent(host.name, program) for host in hosts}
    try:
        with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
            reports, findings = _facts(pool, agents, wanted)
            findings += evaluate_checks(hosts, reports, wanted.min_free_gb)
            links: dict[str, Any] = {}
            if len(reports) == len(hosts) > 1 and not any(f.check == "port" for f in findings):
                links, slow = _links(pool, agents, wanted)
                findings += slow
    finally:
        for agent in agents.values():
            agent.close()
    return {
        "ok": not any(finding.level == "refuse" for finding in findings),
        "seconds": round(time.monotonic() - started, 1),
        "nodes": reports,
        "links": links,
        "findings": [finding.as_dict() for finding in findings],
        "hosts": {host.name: host.slots for host in hosts},
    }


Reports = dict[str, dict[str, Any]]


def _facts(pool: ThreadPoolExecutor, agents: dict[str, Agent], wanted: Wanted) -> tuple[Reports, list[Finding]]:
    def ask(agent: Agent) -> dict[str, Any]:
        agent.answer(wanted.seconds)  # it is ready
        offset = agent.clock_offset()
        facts = agent.ask(
            "facts",
            wanted.seconds,
            recipe=wanted.recipe,
            overrides=wanted.overrides,
            run_dir=wanted.run_dir,
            port=wanted.port,
        )
        return {**facts, "clock_offset": offset}

    answers, failures = _ask_all(pool, agents, ask)
    findings = [Finding("refuse", "reachable", host, reason, _remedy(reason, host)) for host, reason in failures.items()]
    return answers, findings


def _remedy(reason: str, host: str) -> str:
    if "No such file" in reason or "not found" in reason or "can't open" in reason:
        return "install Python and the package on the same paths on all nodes, or use a shared file system"
    return f"make `ssh -o BatchMode=yes {host} true` work without a prompt, or leave the node out of the hostfile"


def _ask_all(
    pool: ThreadPoolExecutor, agents: dict[str, Agent], ask: Callable[[Agent], dict[str, Any]]
) -> tuple[Reports, dict[str, str]]:
    """(answers by host, error texts by host)."""
    answers: Reports = {}
    failures: dict[str, str] = {}
    for host, future in {host: pool.submit(ask, agent) for host, agent in agents.items()}.items():
        try:
            answer = future.result()
        except Unanswered as error:
            failures[host] = str(error)
            continue
        if "error" in answer:
            failures[host] = answer["error"]
        else:
            answers[host] = answer
    return answers, failures


def _links(pool: ThreadPoolExecutor, agents: dict[str, Agent], wanted: Wanted) -> tuple[dict[str, Any], list[Finding]]:
    names = list(agents)

    def ask(agent: Agent) -> dict[str, Any]:
        return agent.ask(
            "links",
            wanted.seconds + 10,
            rank=names.index(agent.host),
            hosts=names,
            port=wanted.port,
            megabytes=wanted.megabytes,
            limit=wanted.seconds,
        )

    answers, failures = _ask_all(pool, agents, ask)
    if failures:
        remedy = (
            "let the nodes reach one another on all TCP ports, and set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME where "
            "several interfaces exist"
        )
        return {}, [Finding("refuse", "collective", host, reason, remedy) for host, reason in failures.items()]
    pairs = {
        (names.index(host), int(other)): speed
        for host, answer in answers.items()
        for other, speed in answer["pairs"].items()
    }
    findings = judge_links(names, pairs)
    findings += [
        Finding("refuse", "collective", host, "its all-reduce gave a wrong sum", "remove it from the hostfile")
        for host, answer in answers.items()
        if not answer["sum_is_right"]
    ]
    links = {
        "pairs_gbs": {f"{names[a]} - {names[b]}": round(speed, 4) for (a, b), speed in pairs.items()},
        "median_gbs": round(median(pairs.values()), 4),
        "all_reduce_gbs": round(min(answer["all_gbs"] for answer in answers.values()), 4),
        "by_node_gbs": {name: round(median(s for pair, s in pairs.items() if n in pair), 4) for n, name in enumerate(names)},
    }
    return links, findings


def report_lines(result: dict[str, Any]) -> list[str]:
    """The result as a table and one line for each finding."""
    head = ("node", "python", "torch", "deepspeed", "devices", "clock", "disk GB", "shm GB", "GB/s", "")
    rows = [head]
    bad = {finding["host"] for finding in result["findings"] if finding["level"] == "refuse"}
    for host in result["hosts"]:
        report = result["nodes"].get(host)
        if report is None:
            rows.append((host, *["-"] * (len(head) - 2), "NO"))
            continue
        speed = result["links"].get("by_node_gbs", {}).get(host)
        rows.append(
            (
                host,
                report["python"],
                report["versions"]["torch"],
                report["versions"]["deepspeed"],
                str(len(report["devices"])),
                f"{report['clock_offset']:+.2f} s",
                str(report["free_gb"]["run"]),
                str(report["free_gb"]["shm"]),
                "-" if speed is None else f"{speed:.3f}",
                "NO" if host in bad else "ok",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if result["links"]:
        lines.append(
            f"links: median of all pairs {result['links']['median_gbs']} GB/s, all-reduce over all "
            f"{result['links']['all_reduce_gbs']} GB/s"
        )
    lines += [
        f"{finding['level']}: {finding['host']}: {finding['message']}; {finding['remedy']}" for finding in result["findings"]
    ]
    return [*lines, f"{'ready' if result['ok'] else 'not ready'} ({result['seconds']} s)"]
