"""`metaxlm benchmark scaling`: training over more ranks or nodes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dist_metaxlm.cli.benchmark.arguments import Commands, Outcome, add_output, add_recipe


def add_scaling(commands: Commands) -> None:
    parser = commands.add_parser("scaling", help="strong and weak scaling over data, tensor and pipeline parallel ranks")
    parser.add_argument("--ranks", type=int, nargs="+", help="ranks on this machine (default: 1 2 4)")
    parser.add_argument("--hostfile", help="measure over these nodes instead, through metaxlm launch")
    parser.add_argument("--nodes", type=int, nargs="+", help="how many of them (default: 1 2 4 ... and all)")
    parser.add_argument(
        "--launcher",
        choices=("deepspeed", "mpirun", "srun"),
        default="deepspeed",
        help="launcher of the ranks on the nodes (default: deepspeed)",
    )
    parser.add_argument("--master_port", type=int, default=29500, help="port of the first node (default: 29500)")
    parser.add_argument(
        "--link_megabits",
        type=float,
        metavar="N",
        help="bandwidth of a node's link; adds the duration of a step's traffic on it",
    )
    parser.add_argument(
        "--over",
        nargs="+",
        choices=("data", "tensor", "pipeline"),
        default=["data", "tensor", "pipeline"],
        help="kinds of ranks (default: all)",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=("strong", "weak"),
        default=["strong", "weak"],
        dest="scalings",
        help="strong: the same batch; weak: a batch that grows (default: both)",
    )
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)  # internal: command for the nodes
    parser.add_argument("--phase", default="cross", help="phase whose steps are measured (default: cross)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each run (default: 8)")
    parser.add_argument("--repeats", type=int, default=2, help="times that each layout runs (default: 2)")
    add_recipe(parser)
    add_output(parser)
    parser.set_defaults(run=scaling)


def scaling(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.scaling.nodes import on_nodes
    from dist_metaxlm.benchmarking.scaling.report import plot, table
    from dist_metaxlm.benchmarking.scaling.scaling import Experiment, measure_scaling

    place, counts = None, arguments.ranks or (1, 2, 4)
    if arguments.hostfile is not None:
        place, counts = on_nodes(
            arguments.hostfile, arguments.launcher, arguments.master_port, link_megabits=arguments.link_megabits
        )
        counts = arguments.nodes or counts
    result = measure_scaling(
        Experiment(
            arguments.recipe,
            tuple(arguments.overrides),
            arguments.phase,
            tuple(counts),
            arguments.steps,
            arguments.repeats,
            tuple(arguments.over),
            tuple(arguments.scalings),
        ),
        place,
    )
    if arguments.output:
        plot(result, Path(arguments.output).with_suffix(".png"))
        Path(arguments.output).with_suffix(".md").write_text(f"{table(result)}\n", encoding="utf-8")
    return result, table(result)
