"""The scaling benchmark over 1, 2 and 4 nodes whose links carry a given number of megabits a second: `make scaling-nodes`.

The nodes are network namespaces that share this machine's cores, so what is seen is the cost of a layout and of its
traffic, not what more machines would gain.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cluster import Cluster, missing
from jobs import PYTHON, ROOT, hostfile

from dist_metaxlm.benchmarking.scaling.report import draw, table
from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.text import pluralize

SHORT = (
    "phases.cross.objectives.mlm.batch_tokens=1024",
    "phases.cross.objectives.tlm.batch_tokens=1024",
    "phases.cross.objectives.contrast.pairs=16",
    "phases.cross.objectives.contrast.group=16",
    "phases.cross.objectives.contrast.max_tokens=24",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabits", type=float, nargs="+", default=[1000.0, 100.0], help="links (default: 1000 100)")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each run (default: 4)")
    parser.add_argument("--repeats", type=int, default=1, help="times that each layout runs (default: 1)")
    parser.add_argument("--output", required=True, help="JSON file; a table and a plot are written beside it")
    arguments = parser.parse_args()
    reason = missing()
    if reason is not None:
        raise UserError(f"no nodes here: {reason}")
    results = {}
    with tempfile.TemporaryDirectory() as own, tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), 4) as cluster:
        for megabits in arguments.megabits:
            cluster.shape(megabits)
            results[f"{megabits:g} Mbit/s"] = measure(cluster, Path(own), megabits, arguments.steps, arguments.repeats)
            print(table(results[f"{megabits:g} Mbit/s"]), flush=True)
            write(results, Path(arguments.output))


def write(results: dict[str, dict[str, Any]], output: Path) -> None:
    """JSON, table and plot of what has been measured so far."""
    draw(results, output.with_suffix(".png"))
    output.with_suffix(".md").write_text(page(results), encoding="utf-8")
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(cluster: Cluster, folder: Path, megabits: float, steps: int, repeats: int) -> dict[str, Any]:
    """One run of the benchmark on node1, as a person would start it there; with how busy the machine was."""
    before = os.getloadavg()[0]
    done = cluster.run(
        "node1",
        PYTHON,
        "launch/benchmark.py",
        "scaling",
        "--hostfile",
        str(hostfile(folder, 4)),
        "--kinds",
        "strong",
        "--steps",
        str(steps),
        "--repeats",
        str(repeats),
        "--link_megabits",
        str(megabits),
        "--json",
        *SHORT,
        cwd=ROOT,
        timeout=7200,
    )
    if done.returncode:
        raise RuntimeError(f"the benchmark ended with {done.returncode}:\n{done.stdout[-1000:]}\n{done.stderr[-4000:]}")
    result = dict(json.loads(done.stdout))
    result["load_before"], result["load_after"] = before, os.getloadavg()[0]
    result["environment"]["command"] = ["make", "scaling-nodes"]  # its own has the paths of this machine's scratch folder
    return result


def page(results: dict[str, dict[str, Any]]) -> str:
    """The tables with what a reader needs to judge them."""
    first = next(iter(results.values()))
    found = first["environment"]
    versions = found["versions"]
    text = [
        f"Recipe {first['recipe']}, phase {first['phase']}, {' '.join(first['overrides'])}; {first['steps']} timed steps, "
        f"each layout {pluralize(first['repeats'], 'time')}; commit {found['commit']}, {found['device']}, "
        f"{found['cpu_cores']} cores, torch {versions['torch']}, deepspeed {versions['deepspeed']}; `make scaling-nodes`.",
        "The nodes are network namespaces of one machine that share its cores: the figures show what a layout costs, not "
        "what it gains. Their links are shaped with tc (tbf), both ways. `MB sent` is what the kernel counted at the nodes' "
        "interfaces, `predicted` what `planning/communication.py` says of the layout. `s on the link` is how long the "
        "predicted bytes of the busiest node take at the link's speed. `in communication` includes waiting for other "
        "ranks, which is long if all share the cores.",
    ]
    lines = [f"# Scaling over nodes, {found['date'][:10]}", "", text[0], "", text[1], ""]
    for name, result in results.items():
        load = f"Load average before {result['load_before']:.1f}, after {result['load_after']:.1f}."
        lines += [f"## {name}", "", load, "", table(result), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
