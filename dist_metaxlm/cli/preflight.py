"""Check the nodes of a hostfile before a long run: reachable, alike, on time, with room, healthy, fast links.

examples:
  metaxlm preflight --hostfile hosts
  metaxlm preflight --hostfile hosts --recipe xlmr-large --run_dir runs/large --min_free_gb 200
  metaxlm preflight --hostfile hosts --json

Exit code 1 when a node is not fit, with its name and what to do. It needs ssh without questions, and the same folder and
Python on all nodes.
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
    parser.add_argument("--recipe", default="quickstart", help="what will be trained (default: quickstart)")
    parser.add_argument("--run_dir", help="folder of the run, whose disk is looked at")
    parser.add_argument("--master_port", type=int, default=29500, help="port of the first host (default: 29500)")
    parser.add_argument("--min_free_gb", type=float, default=5.0, help="free disk that a node must have (default: 5)")
    parser.add_argument("--megabytes", type=float, default=16.0, help="sent between two nodes to measure (default: 16)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time that a node has for one answer (default: 60)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--agent", action="store_true", help=argparse.SUPPRESS)  # what it starts on the nodes
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
