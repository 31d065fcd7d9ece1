"""Scaling measurements on the nodes of a hostfile: `metaxlm launch` starts and checks every job."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dist_metaxlm.benchmarking.scaling.scaling import Place, reported
from dist_metaxlm.benchmarking.scaling.worker import Job, JobReport
from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import own_command
from dist_metaxlm.launching.hostfile import read_hostfile
from dist_metaxlm.text import pluralize


def on_nodes(
    hostfile: str, launcher: str, port: int, link_megabits: float | None = None, start: Sequence[str] | None = None
) -> tuple[Place, tuple[int, ...]]:
    """The place, and the counts of nodes to measure: 1, 2, 4, ... and all.

    `start` is the command of `metaxlm launch`, by default that of this package.

    Raises:
        UserError: when the hostfile is wrong, or its nodes have different numbers of slots.
    """
    hosts = read_hostfile(hostfile)
    slots = {host.slots for host in hosts}
    if len(slots) > 1:
        raise UserError(
            f"hostfile {hostfile} has nodes of {sorted(slots)} slots, and scaling over nodes compares equal "
            "ones; give all hosts the same number"
        )

    def run(count: int, job: Job) -> JobReport:
        with TemporaryDirectory() as folder:
            chosen = Path(folder) / "hosts"
            chosen.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts[:count]), encoding="ascii")
            command = [
                *(start or own_command("launch")),
                "--hostfile",
                str(chosen),
                "--launcher",
                launcher,
                "--master_port",
                str(port),
                "--",
                "benchmark",
                "scaling",
                "--job",
                json.dumps(job),
            ]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        return reported(done.returncode, done.stdout, done.stderr, f"{pluralize(count, 'node')} with {job['overrides']}")

    counts = [1 << power for power in range(len(hosts).bit_length()) if 1 << power < len(hosts)]
    return Place("nodes", slots.pop(), run, link_megabits), (*counts, len(hosts))
