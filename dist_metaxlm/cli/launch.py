"""Start a command on the nodes of a hostfile: check everything first, then run the launcher.

examples:
  metaxlm launch --hostfile hosts -- pretrain --phase meta
  metaxlm launch --hostfile hosts --dry_run -- pretrain --phase meta --recipe xlmr-large
  metaxlm launch --hostfile hosts --launcher mpirun -- prepare store --recipe quickstart
  metaxlm launch --hostfile hosts --launcher torchrun -- pretrain --phase meta    # on every node
  metaxlm launch --hostfile hosts -- mine.py --phase meta                         # a script of your own
  metaxlm launch --supervise --hostfile hosts -- pretrain --phase meta            # restarted after a failure
  metaxlm launch --supervise -- deepspeed --module dist_metaxlm.cli.pretrain --phase meta       # on this machine
  metaxlm launch --slurm_script > slurm.sbatch && sbatch --nodes=4 --ntasks-per-node=8 slurm.sbatch
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import resources

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import EXIT_DONE, run_command
from dist_metaxlm.invocation import program


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("launch"))
    parser.add_argument("--hostfile", help="a line `host slots=N` for each node")
    parser.add_argument(
        "--launcher",
        default="deepspeed",
        choices=("deepspeed", "mpirun", "srun", "torchrun"),
        help="launcher of the ranks (default: deepspeed, by pdsh and ssh)",
    )
    parser.add_argument(
        "--topology", metavar="FILE", help="a line `host rack/switch` for each host: neighbours get neighbouring ranks"
    )
    parser.add_argument("--master_port", type=int, default=29500, help="port of the first host (default: 29500)")
    parser.add_argument(
        "--supervise",
        action="store_true",
        help="start the command again from the last checkpoint after any abnormal end; without --hostfile COMMAND is a "
        "whole command line of this machine, such as deepspeed ... or torchrun ...",
    )
    parser.add_argument("--dry_run", action="store_true", help="print commands, placement and environment, start nothing")
    parser.add_argument(
        "--slurm_script", action="store_true", help="print the Slurm batch script of both phases, start nothing"
    )
    parser.add_argument(
        "script",
        nargs=argparse.REMAINDER,
        metavar="-- COMMAND ...",
        help="a command of metaxlm, such as pretrain, or the path of a script, and its arguments",
    )
    arguments = parser.parse_args(words)
    if arguments.hostfile is None and not (arguments.slurm_script or arguments.supervise):
        parser.error("the following arguments are required: --hostfile")
    return arguments


def slurm_script() -> str:
    """The batch script of the package."""
    return resources.files("dist_metaxlm.launching").joinpath("slurm.sbatch").read_text(encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    if arguments.slurm_script:
        print(slurm_script(), end="")
        return EXIT_DONE
    from dist_metaxlm.launching.launch_job import Request, start, supervise

    script = arguments.script[1:] if arguments.script[:1] == ["--"] else arguments.script
    request = Request(
        arguments.hostfile or "",
        arguments.launcher,
        arguments.topology,
        arguments.master_port,
        arguments.dry_run,
        tuple(script),
    )
    if arguments.supervise:
        return supervise(request)
    start(request)
    return EXIT_DONE


if __name__ == "__main__":
    run_command(main)
