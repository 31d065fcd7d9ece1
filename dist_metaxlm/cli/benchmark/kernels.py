"""`metaxlm benchmark kernels` and `gpu`: operators on a GPU."""

from __future__ import annotations

import argparse
import sys

from dist_metaxlm.cli.benchmark.arguments import Commands, Outcome, add_output
from dist_metaxlm.invocation import own_command


def add_kernels(commands: Commands) -> None:
    parser = commands.add_parser(
        "kernels",
        help="every operator on a GPU: against fp64, its reference and its peers; "
        "exit code 1 if one is wrong or slower than its reference",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tests the command itself, on small shapes and the references (default: cuda)",
    )
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each implementation (default: 20)")
    parser.add_argument(
        "--seconds",
        type=float,
        help="start no peer, and no configuration except those in use, later than this (default: no limit)",
    )
    parser.add_argument(
        "--configurations",
        action="store_true",
        help="instead time every configuration in the lists of the Triton kernels against the one in use",
    )
    parser.add_argument("--only", nargs="+", default=[""], help="only operators whose name contains one of these")
    add_output(parser)
    parser.set_defaults(run=kernels)


def kernels(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.kernels.kernels import line, measure_kernels
    from dist_metaxlm.benchmarking.kernels.partial import keep_partial_results

    keep = keep_partial_results(arguments.output)
    if arguments.configurations:
        from dist_metaxlm.benchmarking.kernels.configurations import measure_configurations, table

        timings = measure_configurations(arguments.device, arguments.repeats, arguments.only, arguments.seconds, keep)
        return timings, table(timings)
    result = measure_kernels(arguments.device, arguments.repeats, arguments.only, arguments.seconds, keep)
    return result, "\n".join(line(row) for row in result["cases"])


def add_gpu(commands: Commands) -> None:
    parser = commands.add_parser(
        "gpu",
        help="all GPU measurements: kernels, then three models against "
        "Hugging Face's; exit code 1 if one is wrong or slower (make gpu-check)",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tests the command itself on small stand-ins (default: cuda)",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="total time (default: 10)")
    add_output(parser)
    parser.set_defaults(run=gpu)


def gpu(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.kernels.gpu_check import check_gpu, runner
    from dist_metaxlm.benchmarking.kernels.partial import keep_partial_results

    result = check_gpu(
        arguments.device,
        arguments.minutes,
        lambda line: print(line, file=sys.stderr, flush=True),
        runner(own_command("benchmark")),
        keep_partial_results(arguments.output),
    )
    problems = [f"{kind}: {'; '.join(result[kind])}" for kind in ("wrong", "slower", "unfinished") if result[kind]]
    return result, "\n".join(problems) or "nothing is wrong or slower"
