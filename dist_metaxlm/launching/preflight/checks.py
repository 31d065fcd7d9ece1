"""Compares the nodes' facts with one another and with the needs of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from dist_metaxlm.launching.hostfile import Host
from dist_metaxlm.parallel.shared_facts import SHARED_DATA, remedy
from dist_metaxlm.text import pluralize

CLOCK_WARN, CLOCK_REFUSE = 1.0, 5.0
"""Maximum clock difference of a node in seconds: rendezvous by wall clock (c10d) fails from about 15."""
SLOW = 0.5
"""A node whose links have less than this share of the median bandwidth is slow."""
SHM_GB, OPEN_FILES, DEVICE_FREE = 1.0, 4096, 0.9


@dataclass(frozen=True)
class Finding:
    """An error or a warning about a node."""

    level: str
    """`refuse`: the run would fail or be wrong; `warn`: it may be slow or fail later."""
    check: str
    host: str
    message: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def evaluate_checks(hosts: Sequence[Host], reports: Mapping[str, Mapping[str, Any]], min_free_gb: float) -> list[Finding]:
    """All findings about nodes that answered. `reports`, by host: the result of facts.collect, `clock_offset` in seconds."""
    findings = [
        finding for host in hosts if host.name in reports for finding in _alone(host, reports[host.name], min_free_gb)
    ]
    first = hosts[0].name
    if first in reports and reports[first]["port"] != "free":
        findings.append(
            Finding(
                "refuse",
                "port",
                first,
                f"the rendezvous port is taken by {reports[first]['port']}",
                "give another --master_port, here and to the launcher",
            )
        )
    return [*findings, *_differences(reports), *_same_machine(reports)]


def _alone(host: Host, report: Mapping[str, Any], min_free_gb: float) -> list[Finding]:
    """Findings about a single node."""
    findings = []

    def add(level: str, check: str, message: str, remedy: str) -> None:
        findings.append(Finding(level, check, host.name, message, remedy))

    offset = abs(report["clock_offset"])
    if offset > CLOCK_WARN:
        add(
            "refuse" if offset > CLOCK_REFUSE else "warn",
            "clock",
            f"its clock is off by {report['clock_offset']:+.1f} s",
            "start chronyd or ntpd on it",
        )
    for name in ("data", "run"):
        free = report["free_gb"][name]
        if free is not None and free < min_free_gb:
            add(
                "refuse",
                "disk",
                f"{free} GB are free for {name}, {min_free_gb:g} are required",
                "free some, or give --min_free_gb",
            )
    if (report["free_gb"]["shm"] or 0) < SHM_GB:
        add("warn", "shm", f"/dev/shm has {report['free_gb']['shm']} GB free", "mount it larger (containers: --shm-size=8g)")
    if report["limits"]["open files"] not in (-1,) and report["limits"]["open files"] < OPEN_FILES:
        add("warn", "limits", f"{report['limits']['open files']} open files are allowed", f"ulimit -n {OPEN_FILES * 16}")
    if report["devices"] and report["limits"]["locked memory"] != -1:
        add("warn", "limits", "locked memory is limited, RDMA needs it unlimited", "ulimit -l unlimited (limits.conf)")
    if report["devices"] and len(report["devices"]) < host.slots:
        devices = pluralize(len(report["devices"]), "device")
        add("refuse", "devices", f"{devices} for {pluralize(host.slots, 'slot')}", "correct the hostfile")
    for number, device in enumerate(report["devices"]):
        if not device["healthy"]:
            add(
                "refuse",
                "devices",
                f"device {number} ({device['name']}) fails: {device.get('reason', 'a wrong product')}",
                "remove the node from the hostfile and have it checked",
            )
        elif device["free_gb"] < DEVICE_FREE * device["total_gb"]:
            add(
                "warn",
                "devices",
                f"device {number} has {device['free_gb']} of {device['total_gb']} GB free",
                "end the other processes on it",
            )
        if device["errors"]:
            add(
                "warn",
                "devices",
                f"device {number} reports {device['errors']} uncorrected memory errors",
                "reset or replace it",
            )
    return findings


def _differences(reports: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Findings about nodes that differ from the majority (of two nodes: from the first)."""
    findings = _unlike(reports, "python", lambda r: r["python"], "install the same Python on all nodes")
    for name in sorted({name for report in reports.values() for name in report["versions"]}):
        findings += _unlike(reports, name, lambda r, n=name: r["versions"].get(n), remedy(name))
    for name in ("cuda", "driver"):
        findings += _unlike(reports, name, lambda r, n=name: r[n], remedy(name))
    findings += _unlike(
        reports,
        "devices",
        lambda r: ", ".join(sorted({d["name"] for d in r["devices"]})) or "no device",
        "use nodes with the same devices",
    )
    for name in SHARED_DATA:
        findings += _unlike(reports, name, lambda r, n=name: r["checksums"][n][:12], remedy(name))
    return findings


def _unlike(reports: Mapping[str, Mapping[str, Any]], check: str, value: Callable[..., Any], remedy: str) -> list[Finding]:
    values = {host: value(report) for host, report in reports.items()}
    counts = Counter(values.values())
    usual = max(counts, key=lambda v: counts[v]) if counts else None  # the first of equally many
    others = [host for host, own in values.items() if own == usual]
    like = f"{others[0]} and others" if len(others) > 1 else "".join(others)
    return [
        Finding("refuse", check, host, f"{check} is {own}, on {like} it is {usual}", remedy)
        for host, own in values.items()
        if own != usual
    ]


def _same_machine(reports: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    seen: dict[tuple[str, str], str] = {}
    findings = []
    for host, report in reports.items():
        first = seen.setdefault((report["host"], report["boot"]), host)
        if first != host:
            findings.append(
                Finding(
                    "refuse",
                    "hosts",
                    host,
                    f"it is the same machine as {first} ({report['host']})",
                    "keep one line per node in the hostfile",
                )
            )
    return findings


def judge_links(hosts: Sequence[str], pairs: Mapping[tuple[int, int], float]) -> list[Finding]:
    """Nodes whose links are slow: `pairs` is GB/s by (node, node). With two nodes there is nothing to compare."""
    if len(hosts) < 3 or not pairs:
        return []
    usual = median(pairs.values())
    findings = []
    for number, host in enumerate(hosts):
        own = median(speed for pair, speed in pairs.items() if number in pair)
        if own < SLOW * usual:
            findings.append(
                Finding(
                    "refuse",
                    "bandwidth",
                    host,
                    f"its links carry {own:.3f} GB/s, the median of all is {usual:.3f}",
                    "check its cable, port and interface",
                )
            )
    return findings
