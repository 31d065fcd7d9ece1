#!/usr/bin/env python3
"""Start a script on the nodes of a hostfile: check everything first, then hand over to the launcher.

examples:
  python launch/nodes/start.py --hostfile hosts -- launch/pretrain.py --phase meta
  python launch/nodes/start.py --hostfile hosts --dry_run -- launch/pretrain.py --phase meta --recipe xlmr-large
  python launch/nodes/start.py --hostfile hosts --launcher mpirun -- launch/prepare.py store --recipe quickstart
  python launch/nodes/start.py --hostfile hosts --launcher torchrun -- launch/pretrain.py --phase meta    # on every node
"""

from __future__ import annotations

import argparse

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import run_command


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--hostfile", required=True, help="a line `host slots=N` for each node")
    parser.add_argument(
        "--launcher",
        default="deepspeed",
        choices=("deepspeed", "mpirun", "srun", "torchrun"),
        help="what starts the ranks (default: deepspeed, by pdsh and ssh)",
    )
    parser.add_argument(
        "--topology", metavar="FILE", help="a line `host rack/switch` for each host: neighbours get neighbouring ranks"
    )
    parser.add_argument("--master_port", type=int, default=29500, help="port of the first host (default: 29500)")
    parser.add_argument("--dry_run", action="store_true", help="print commands, placement and environment, start nothing")
    parser.add_argument(
        "script",
        nargs=argparse.REMAINDER,
        metavar="-- SCRIPT ...",
        help="the script, such as launch/pretrain.py, and its arguments",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    from dist_metaxlm.launching.launch_job import Request, start

    script = arguments.script[1:] if arguments.script[:1] == ["--"] else arguments.script
    start(
        Request(
            arguments.hostfile,
            arguments.launcher,
            arguments.topology,
            arguments.master_port,
            arguments.dry_run,
            tuple(script),
        )
    )


if __name__ == "__main__":
    run_command(main)
