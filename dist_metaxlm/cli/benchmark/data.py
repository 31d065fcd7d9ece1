"""`metaxlm benchmark data`, `cleaning` and `store`: the loader and the preparation of data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

from dist_metaxlm.cli.benchmark.arguments import Commands, Outcome, add_output, add_recipe
from dist_metaxlm.text import pluralize


def add_data(commands: Commands) -> None:
    parser = commands.add_parser("data", help="opening a store, seeking, and batches per second of the loader")
    parser.add_argument(
        "--tokens",
        type=int,
        default=10**9,
        help="tokens of the opened store; a second one has ten times as many (default: 1e9)",
    )
    parser.add_argument("--runs", type=int, default=5, help="fresh processes that open each store (default: 5)")
    parser.add_argument("--metrics", help="metrics.jsonl of a run, for the share of its time spent waiting for data")
    parser.add_argument("--store", help="token store with translations, to measure the losses of tlm's windows on it")
    add_output(parser)
    parser.set_defaults(run=data)


def data(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.data.loading import measure_data

    result = measure_data(arguments.tokens, arguments.runs, arguments.metrics, arguments.store)
    languages = pluralize(result["languages"], "language")
    lines = [
        f"{row['tokens']:,} tokens in {languages}: first batch after {row['seconds']:.2f} s, "
        f"{row['resident_mb']:.0f} MB resident ({row['imports_resident_mb']:.0f} of them before the store is opened)"
        for row in result["opening"].values()
    ]
    loading = result["loading"]
    lines += [
        f"{name}: {rate['cpu'] / 1e6:.1f}M tokens a CPU second of one thread ({rate['wall'] / 1e6:.1f}M by the clock)"
        for name, rate in loading["tokens_per_second"].items()
    ]
    lines.append(f"a batch from sample 10^9 on costs {loading['far_to_near']:.2f} of one at the start")
    if result["data_wait_share"]:
        lines.append(f"the training run waited for data for {result['data_wait_share']['median']:.2%} of its time")
    lines += [
        f"tlm windows of {length}: {row['padding']:.1%} padding and {row['left_out']:.1%} of the pairs left out an "
        f"epoch (a grid of windows cuts {row['grid_inert']:.1%} of the tokens), {row['tokens_per_second'] / 1e6:.1f}M "
        "tokens/s before masks"
        for length, row in (result["tlm_packing"] or {}).items()
    ]
    return result, "\n".join(lines)


def add_cleaning(commands: Commands) -> None:
    parser = commands.add_parser("cleaning", help="speed, memory and detections of the corpus step on generated text")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[250, 1000], help="sizes (default: 250 1000)")
    add_output(parser)
    parser.set_defaults(run=cleaning)


def cleaning(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.data.cleaning import measure_cleaning

    result = measure_cleaning(arguments.megabytes)
    return result, "\n".join(
        f"{run['megabytes']} MB: {run['megabytes_per_second']} MB/s, {run['peak_resident_megabytes']:.0f} MB resident at "
        f"most; planted {run['planted']}, dropped {run['dropped']}"
        for run in result["runs"]
    )


def add_store(commands: Commands) -> None:
    parser = commands.add_parser("store", help="metaxlm prepare store, whole command, compared with Megatron's tools")
    parser.add_argument("--repeats", type=int, default=3, help="times that each command runs (default: 3)")
    parser.add_argument("--scratch", default=".", help="folder for temporary files (default: current folder)")
    add_recipe(parser)
    add_output(parser)
    parser.set_defaults(run=store)


def store(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.data.store import measure_store

    result = measure_store(arguments.recipe, arguments.overrides, Path(arguments.scratch), arguments.repeats)
    ratios = ", ".join(f"{name} {value}" for name, value in result.items() if "_against_" in name)
    return result, f"{cast(int, result['text_bytes']) / 1e6:.0f} MB: {ratios}; same files: {result['identical_files']}"
