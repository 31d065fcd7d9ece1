"""Check the nodes of a hostfile before a long run: connections, versions, clocks, disk space, devices and bandwidth.

examples:
  metaxlm preflight --hostfile hosts
  metaxlm preflight --hostfile hosts --recipe xlmr-large --run_dir runs/large --min_free_gb 200
  metaxlm preflight --hostfile hosts --json

Exit code 1 when a node fails a check, with its name and the remedy. It needs ssh without prompts, and the same folder
and Python on all nodes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE, run_command
from dist_metaxlm.invocation import own_command, program


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("preflight"))
    parser.add_argument("--hostfile", help="a line `host slots=N` for each node")
    parser.add_argument("--recipe", default="quickstart", help="recipe to train later (default: quickstart)")
    parser.add_argument("--run_dir", help="folder of the run, whose disk is checked")
    parser.add_argument("--master_port", type=int, default=29500, help="port of the first host (default: 29500)")
    parser.add_argument("--min_free_gb", type=float, default=5.0, help="free disk that a node must have (default: 5)")
    parser.add_argument("--megabytes", type=float, default=16.0, help="sent between two nodes to measure (default: 16)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time that a node has for one answer (default: 60)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--agent", action="store_true", help=argparse.SUPPRESS)  # internal: command for the nodes
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    arguments = parser.parse_intermixed_args(words)
    if not arguments.agent and not arguments.hostfile:
        parser.error("--hostfile is needed")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    if arguments.agent:
        from dist_metaxlm.launching.preflight.agent import serve

        serve()
        return EXIT_DONE
    from dist_metaxlm.launching.preflight.run import Wanted, preflight, report_lines

    result = preflight(
        Wanted(
            arguments.hostfile,
            arguments.recipe,
            tuple(arguments.overrides),
            arguments.run_dir,
            arguments.master_port,
            arguments.min_free_gb,
            arguments.megabytes,
            arguments.seconds,
        ),
        own_command("preflight"),
    )
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(report_lines(result)))
    return EXIT_DONE if result["ok"] else EXIT_BUG


if __name__ == "__main__":
    run_command(main)
