#!/usr/bin/env python3
"""Measure this trainer on this machine.

examples:
  python launch/benchmark.py throughput --baseline huggingface
  python launch/benchmark.py throughput --baseline huggingface --recipe xlmr-base --batch_tokens 1024 --rows 8 --steps 2 \\
      data.directory=data/quickstart phases.cross.sequence_length=128
  python launch/benchmark.py store --recipe mine.yaml --scratch /tmp --output store.json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from dist_metaxlm.errors import run_command


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    throughput = commands.add_parser("throughput", help="tokens per second of training, side by side with a baseline")
    throughput.add_argument("--baseline", choices=("huggingface",), default="huggingface")
    throughput.add_argument("--recipe", default="quickstart")
    throughput.add_argument("--steps", type=int, default=8, help="timed steps of each side (default: 8)")
    throughput.add_argument("--batch_tokens", type=int, default=8192, help="tokens of a step (default: 8192)")
    throughput.add_argument("--rows", type=int, default=32, help="rows of the baseline's padded batches (default: 32)")
    throughput.add_argument("--output", help="also write the figures, with hardware and versions, to this JSON file")
    throughput.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    throughput.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    store = commands.add_parser("store", help="prepare.py store, whole command, side by side with Megatron's way")
    store.add_argument("--recipe", default="quickstart", help="recipe that names the text (default: quickstart)")
    store.add_argument("--repeats", type=int, default=3, help="times that each command runs (default: 3)")
    store.add_argument("--scratch", default=".", help="folder for what is written and removed again (default: here)")
    store.add_argument("--output", help="also write the figures, with hardware and versions, to this JSON file")
    store.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    store.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.command == "store":
        measure_store(arguments)
    else:
        measure_throughput(arguments)


def measure_store(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from dist_metaxlm.benchmarking import store

    result = store.measure_store(arguments.recipe, arguments.overrides, Path(arguments.scratch), arguments.repeats)
    ratios = ", ".join(f"{name} {value}" for name, value in result.items() if "_against_" in name)
    report(arguments, result, f"{result['text_bytes'] / 1e6:.0f} MB: {ratios}; same files: {result['identical_files']}")


def measure_throughput(arguments: argparse.Namespace) -> None:
    from dist_metaxlm.benchmarking import report as throughput

    result = throughput.measure_throughput(arguments.recipe, arguments.overrides, arguments.steps, arguments.batch_tokens,
                                arguments.rows)
    report(arguments, result,
           f"{result['model']}: {result['ours_tokens_per_second']:,.0f} tokens/s, Hugging Face padded "
           f"{result['huggingface_tokens_per_second']:,.0f} tokens/s, ratio {result['ratio']:.2f} "
           f"({result['ratio_min']:.2f} to {result['ratio_max']:.2f}), largest loss difference "
           f"{result['largest_loss_difference']:.1e}")


def report(arguments: argparse.Namespace, result: dict[str, Any], sentence: str) -> None:
    """Write the figures to --output and print them, as JSON or as a sentence."""
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as stream:
            json.dump(result, stream, indent=1)
    print(json.dumps(result) if arguments.json else sentence)


if __name__ == "__main__":
    run_command(main)
