"""`metaxlm benchmark compare`: two results of one benchmark."""

from __future__ import annotations

import argparse

from dist_metaxlm.cli.benchmark.arguments import Commands, Outcome, add_output


def add_compare(commands: Commands) -> None:
    parser = commands.add_parser("compare", help="two files of one benchmark; exit code 1 if the second one is worse")
    parser.add_argument("before", metavar="A.json", help="file of --output, the earlier one")
    parser.add_argument("after", metavar="B.json", help="file of --output, the later one")
    parser.add_argument("--tolerance", type=float, default=0.05, help="share that is no regression (default: 0.05)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.compare import compare, sentences

    result = compare(arguments.before, arguments.after, arguments.tolerance)
    return result, sentences(result)
