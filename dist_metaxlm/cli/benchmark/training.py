"""`metaxlm benchmark throughput`, `step`, `cpu` and `saving`: the steps of training."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from dist_metaxlm.cli.benchmark.arguments import Commands, Outcome, add_output, add_recipe
from dist_metaxlm.errors import UserError
from dist_metaxlm.text import pluralize


def add_throughput(commands: Commands) -> None:
    parser = commands.add_parser("throughput", help="tokens per second of training, compared with a baseline")
    parser.add_argument("--baseline", choices=("huggingface",), default="huggingface")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side (default: 8)")
    parser.add_argument("--batch_tokens", type=int, default=8192, help="tokens of a step (default: 8192)")
    parser.add_argument("--rows", type=int, default=32, help="rows of the baseline's padded batches (default: 32)")
    parser.add_argument(
        "--documents",
        choices=("store", "generated"),
        default="store",
        help="those of the recipe's token "
        "store, or random ids in documents of lognormal lengths, which need no data (default: store)",
    )
    parser.add_argument("--seconds", type=float, help="start no new step after this time (default: no limit)")
    add_recipe(parser)
    add_output(parser)
    parser.set_defaults(run=throughput)


def throughput(arguments: argparse.Namespace) -> Outcome:
    missing = [name for name in ("numpy", "pydantic", "safetensors", "transformers", "yaml") if not find_spec(name)]
    if missing:
        raise UserError(
            f"throughput needs {', '.join(missing)}, which this Python lacks; install it, or bring its wheels "
            "there (docs/kernels.md)"
        )
    from dist_metaxlm.benchmarking.kernels.partial import keep_partial_results
    from dist_metaxlm.benchmarking.training.report import measure_throughput

    result = measure_throughput(
        arguments.recipe,
        arguments.overrides,
        arguments.steps,
        arguments.batch_tokens,
        arguments.rows,
        arguments.documents,
        arguments.seconds,
        keep_partial_results(arguments.output),
    )
    return result, (
        f"{result['model']}: {result['ours_tokens_per_second']:,.0f} tokens/s, Hugging Face padded "
        f"{result['huggingface_tokens_per_second']:,.0f} tokens/s, ratio {result['ratio']:.2f} "
        f"({result['ratio_min']:.2f} to {result['ratio_max']:.2f}), largest loss difference "
        f"{result['largest_loss_difference']:.1e}"
    )


def add_step(commands: Commands) -> None:
    parser = commands.add_parser(
        "step",
        help="time of a training step by component and pass, and causes of host waits; under a launcher on all its ranks",
    )
    parser.add_argument("--phase", default="cross", help="phase whose steps are profiled (default: cross)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, and as many under the profiler (default: 5)")
    parser.add_argument("--trace", help="also write a Chrome trace to this file, for chrome://tracing or ui.perfetto.dev")
    add_recipe(parser)
    add_output(parser)
    parser.set_defaults(run=step)


def step(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.training.step import measure_step, table

    result = measure_step(arguments.recipe, arguments.overrides, arguments.phase, arguments.steps, arguments.trace)
    return result, table(result)


def add_cpu(commands: Commands) -> None:
    parser = commands.add_parser(
        "cpu",
        help="choices of the CPU path against their alternatives: short rows, hashing of "
        "dropout masks, AdamW; under a launcher on all its ranks",
    )
    parser.add_argument("--phase", default="cross", help="phase whose documents and steps are measured (default: cross)")
    parser.add_argument("--repeats", type=int, default=8, help="timed runs of each side (default: 8)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("rows", "dropout", "update"),
        default=["rows", "dropout", "update"],
        help="comparisons to run (default: all)",
    )
    add_recipe(parser)
    add_output(parser)
    parser.set_defaults(run=cpu)


def cpu(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.training.cpu import measure_cpu, table

    result = measure_cpu(arguments.recipe, arguments.overrides, arguments.phase, arguments.repeats, arguments.parts)
    return result, table(result)


def add_saving(commands: Commands) -> None:
    parser = commands.add_parser(
        "saving",
        help="pause of training at a checkpoint, blocking against background saving; under a launcher on all its ranks",
    )
    parser.add_argument("--repeats", type=int, default=5, help="saves of either kind (default: 5)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a rank's training step (default: 256)")
    parser.add_argument("--scratch", default=".", help="folder for temporary files (default: current folder)")
    add_recipe(parser)
    add_output(parser)
    parser.set_defaults(run=saving)


def saving(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.training.saving import measure_saving

    result = measure_saving(
        arguments.recipe, arguments.overrides, Path(arguments.scratch), arguments.repeats, arguments.tokens
    )
    return result, (
        f"{result['megabytes']:.0f} MB on {pluralize(result['ranks'], 'rank')}: training pauses for "
        f"{result['background_stall_seconds']:.3f} s instead of {result['blocking_seconds']:.2f} s "
        f"({result['stall_share_of_blocking']:.1%}; {result['stall_share_min']:.1%} to {result['stall_share_max']:.1%}), "
        f"for {result['copy_seconds']:.3f} s ({result['copy_share_of_blocking']:.1%}) if no step hides the copy; "
        f"steps during a save take {result['slowed_seconds']:.2f} s longer"
    )
