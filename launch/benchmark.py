#!/usr/bin/env python3
"""Measure this trainer on this machine.

examples:
  python launch/benchmark.py throughput --baseline huggingface
  python launch/benchmark.py throughput --baseline huggingface --recipe xlmr-base --batch_tokens 1024 --rows 8 --steps 2 \\
      data.directory=data/quickstart phases.cross.sequence_length=128
  python launch/benchmark.py cleaning --megabytes 250 1000
"""

from __future__ import annotations

import argparse
import json

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
    cleaning = commands.add_parser("cleaning", help="speed, memory and finds of the corpus step on generated text")
    cleaning.add_argument("--megabytes", type=int, nargs="+", default=[250, 1000], help="sizes (default: 250 1000)")
    cleaning.add_argument("--output", help="also write the figures, with hardware and versions, to this JSON file")
    cleaning.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.command == "cleaning":
        clean(arguments)
        return
    from dist_metaxlm.benchmarking.report import measure_throughput

    result = measure_throughput(arguments.recipe, arguments.overrides, arguments.steps, arguments.batch_tokens,
                                arguments.rows)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as stream:
            json.dump(result, stream, indent=1)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{result['model']}: {result['ours_tokens_per_second']:,.0f} tokens/s, Hugging Face padded "
              f"{result['huggingface_tokens_per_second']:,.0f} tokens/s, ratio {result['ratio']:.2f} "
              f"({result['ratio_min']:.2f} to {result['ratio_max']:.2f}), largest loss difference "
              f"{result['largest_loss_difference']:.1e}")


def clean(arguments: argparse.Namespace) -> None:
    from dist_metaxlm.benchmarking.cleaning import measure_cleaning

    result = measure_cleaning(arguments.megabytes)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as stream:
            json.dump(result, stream, indent=1)
    if arguments.json:
        print(json.dumps(result))
    else:
        for run in result["runs"]:
            print(f"{run['megabytes']} MB: {run['megabytes_per_second']} MB/s, {run['peak_resident_megabytes']:.0f} MB "
                  f"resident at most; planted {run['planted']}, dropped {run['dropped']}")


if __name__ == "__main__":
    run_command(main)
