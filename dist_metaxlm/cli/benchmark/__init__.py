"""Measure this trainer on this machine.

examples:
  metaxlm benchmark throughput --baseline huggingface
  metaxlm benchmark throughput --baseline huggingface --recipe xlmr-base --batch_tokens 1024 --rows 8 --steps 2 \\
      data.directory=data/quickstart data.max_pair_tokens=128 phases.cross.sequence_length=128 \\
      phases.cross.objectives.mlm.batch_tokens=1024 phases.cross.objectives.tlm.batch_tokens=1024
  metaxlm benchmark data --metrics runs/quickstart/cross/metrics.jsonl --store data/quickstart/store
  metaxlm benchmark cleaning --megabytes 250 1000
  metaxlm benchmark kernels --json
  metaxlm benchmark kernels --configurations --only norm_forward
  metaxlm benchmark gpu --minutes 10 --output gpu.json
  metaxlm benchmark step --phase cross --trace step.json
  metaxlm benchmark cpu --parts rows dropout --repeats 8 --output cpu.json
  metaxlm benchmark store --recipe mine.yaml --scratch /tmp --output store.json
  metaxlm benchmark scaling --ranks 1 2 4 --output scaling.json
  metaxlm benchmark scaling --hostfile hosts --over data pipeline --output scaling.json
  metaxlm benchmark compare before.json after.json --tolerance 0.1
  torchrun --nproc_per_node 2 -m dist_metaxlm.cli.benchmark saving model.hidden=512 model.ffn=2048 model.heads=8
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from dist_metaxlm.cli.benchmark import compare, data, kernels, scaling, training
from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE
from dist_metaxlm.invocation import program

BENCHMARKS = (
    training.add_throughput,
    data.add_data,
    data.add_cleaning,
    data.add_store,
    scaling.add_scaling,
    training.add_saving,
    kernels.add_kernels,
    training.add_step,
    training.add_cpu,
    kernels.add_gpu,
    compare.add_compare,
)
"""Functions that register each benchmark's parser, in the order of the help."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("benchmark"))
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher
    commands = parser.add_subparsers(dest="command", required=True)
    for add in BENCHMARKS:
        add(commands)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    if arguments.command == "scaling" and arguments.job is not None:
        from dist_metaxlm.benchmarking.scaling.worker import main as take_part

        take_part(arguments.job)
        return EXIT_DONE
    if arguments.output:
        from dist_metaxlm.reporting.metrics import check_output

        check_output(Path(arguments.output))
    result, sentence = arguments.run(arguments)
    if int(os.environ.get("RANK") or 0):
        return EXIT_DONE  # all ranks have measured together
    if arguments.output:
        from dist_metaxlm.benchmarking.kernels.partial import finished

        Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        finished(arguments.output)
    print(json.dumps(result) if arguments.json else sentence)
    return EXIT_BUG if any(result.get(kind) for kind in ("wrong", "slower", "unfinished")) else EXIT_DONE
