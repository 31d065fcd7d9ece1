#!/usr/bin/env python3
"""Measure this trainer on this machine.

examples:
  python launch/benchmark.py throughput --baseline huggingface
  python launch/benchmark.py throughput --baseline huggingface --recipe xlmr-base --batch_tokens 1024 --rows 8 --steps 2 \\
      data.directory=data/quickstart data.max_pair_tokens=128 phases.cross.sequence_length=128 \\
      phases.cross.objectives.mlm.batch_tokens=1024 phases.cross.objectives.tlm.batch_tokens=1024
  python launch/benchmark.py data --metrics runs/quickstart/cross/metrics.jsonl --store data/quickstart/store
  python launch/benchmark.py cleaning --megabytes 250 1000
  python launch/benchmark.py kernels --json
  python launch/benchmark.py kernels --configurations --only norm_forward
  python launch/benchmark.py gpu --minutes 10 --output gpu.json
  python launch/benchmark.py step --phase cross --trace step.json
  python launch/benchmark.py cpu --parts rows dropout --repeats 8 --output cpu.json
  python launch/benchmark.py store --recipe mine.yaml --scratch /tmp --output store.json
  python launch/benchmark.py scaling --ranks 1 2 4 --output scaling.json
  python launch/benchmark.py scaling --hostfile hosts --over data pipeline --output scaling.json
  torchrun --nproc_per_node 2 launch/benchmark.py saving model.hidden=512 model.ffn=2048 model.heads=8 model.layers=6
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE, UserError, run_command
from dist_metaxlm.text import counted

Outcome = tuple[dict[str, Any], str]


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("throughput", help="tokens per second of training, side by side with a baseline")
    training.add_argument("--baseline", choices=("huggingface",), default="huggingface")
    training.add_argument("--steps", type=int, default=8, help="timed steps of each side (default: 8)")
    training.add_argument("--batch_tokens", type=int, default=8192, help="tokens of a step (default: 8192)")
    training.add_argument("--rows", type=int, default=32, help="rows of the baseline's padded batches (default: 32)")
    training.add_argument(
        "--documents",
        choices=("store", "generated"),
        default="store",
        help="those of the recipe's token "
        "store, or random ids in documents of lognormal lengths, which need no data (default: store)",
    )
    training.add_argument("--seconds", type=float, help="begin no new step after so many (default: no limit)")
    loading = commands.add_parser("data", help="opening a store, seeking, and batches per second of the loader")
    loading.add_argument(
        "--tokens",
        type=int,
        default=10**9,
        help="tokens of the store that is opened; a second one has ten times as many (default: 1e9)",
    )
    loading.add_argument("--runs", type=int, default=5, help="fresh processes that open each store (default: 5)")
    loading.add_argument("--metrics", help="metrics.jsonl of a run, for the share of its time spent waiting for data")
    loading.add_argument("--store", help="token store with translations, to measure what tlm's windows lose on it")
    corpus = commands.add_parser("cleaning", help="speed, memory and finds of the corpus step on generated text")
    corpus.add_argument("--megabytes", type=int, nargs="+", default=[250, 1000], help="sizes (default: 250 1000)")
    writing = commands.add_parser("store", help="prepare.py store, whole command, side by side with Megatron's way")
    writing.add_argument("--repeats", type=int, default=3, help="times that each command runs (default: 3)")
    writing.add_argument("--scratch", default=".", help="folder for what is written and removed again (default: here)")
    scaled = commands.add_parser("scaling", help="strong and weak scaling over data, tensor and pipeline parallel ranks")
    scaled.add_argument("--ranks", type=int, nargs="+", help="ranks on this machine (default: 1 2 4)")
    scaled.add_argument("--hostfile", help="measure over these nodes instead, through launch/nodes/start.py")
    scaled.add_argument("--nodes", type=int, nargs="+", help="how many of them (default: 1 2 4 ... and all)")
    scaled.add_argument(
        "--launcher",
        choices=("deepspeed", "mpirun", "srun"),
        default="deepspeed",
        help="what starts the ranks on the nodes (default: deepspeed)",
    )
    scaled.add_argument("--master_port", type=int, default=29500, help="port of the first node (default: 29500)")
    scaled.add_argument(
        "--link_megabits",
        type=float,
        metavar="N",
        help="what a node's link carries in a second; adds how long a step's traffic takes on it",
    )
    scaled.add_argument(
        "--over",
        nargs="+",
        choices=("data", "tensor", "pipeline"),
        default=["data", "tensor", "pipeline"],
        help="kinds of ranks (default: all)",
    )
    scaled.add_argument(
        "--kinds",
        nargs="+",
        choices=("strong", "weak"),
        default=["strong", "weak"],
        dest="scalings",
        help="strong: the same batch; weak: a batch that grows (default: both)",
    )
    scaled.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)  # what it starts on the nodes
    scaled.add_argument("--phase", default="cross", help="phase whose steps are measured (default: cross)")
    scaled.add_argument("--steps", type=int, default=8, help="timed steps of each run (default: 8)")
    scaled.add_argument("--repeats", type=int, default=2, help="times that each layout runs (default: 2)")
    saving = commands.add_parser(
        "saving",
        help="how long training stands still at a checkpoint, blocking against in the "
        "background; under a launcher on all its ranks",
    )
    saving.add_argument("--repeats", type=int, default=5, help="saves of either kind (default: 5)")
    saving.add_argument("--tokens", type=int, default=256, help="tokens of a rank's training step (default: 256)")
    saving.add_argument("--scratch", default=".", help="folder for what is written and removed again (default: here)")
    operators = commands.add_parser(
        "kernels",
        help="every operator on a GPU: against fp64, its reference and its peers; "
        "exit code 1 where one is wrong or slower than its reference",
    )
    operators.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tries the command itself, on small shapes and the references (default: cuda)",
    )
    operators.add_argument("--repeats", type=int, default=20, help="timed runs of each implementation (default: 20)")
    operators.add_argument(
        "--seconds",
        type=float,
        help="begin no peer, and no configuration but those in use, later than this (default: no limit)",
    )
    operators.add_argument(
        "--configurations",
        action="store_true",
        help="instead time every configuration in the lists of the Triton kernels beside the one in use",
    )
    operators.add_argument("--only", nargs="+", default=[""], help="only operators whose name contains one of these")
    profiled = commands.add_parser(
        "step",
        help="where the time of a training step goes, by component and pass, and what "
        "makes the host wait; under a launcher on all its ranks",
    )
    profiled.add_argument("--phase", default="cross", help="phase whose steps are profiled (default: cross)")
    profiled.add_argument("--steps", type=int, default=5, help="timed steps, and as many under the profiler (default: 5)")
    profiled.add_argument("--trace", help="also write a Chrome trace to this file, for chrome://tracing or ui.perfetto.dev")
    choices = commands.add_parser(
        "cpu",
        help="what the CPU path chose beside what it did not: short rows, how dropout "
        "masks are hashed, AdamW; under a launcher on all its ranks",
    )
    choices.add_argument("--phase", default="cross", help="phase whose documents and steps are measured (default: cross)")
    choices.add_argument("--repeats", type=int, default=8, help="timed runs of each side (default: 8)")
    choices.add_argument(
        "--parts",
        nargs="+",
        choices=("rows", "dropout", "update"),
        default=["rows", "dropout", "update"],
        help="what is compared (default: all)",
    )
    whole = commands.add_parser(
        "gpu",
        help="everything that is to be measured on a GPU: kernels, then three models against "
        "Hugging Face's; exit code 1 where one is wrong or slower (make gpu-check)",
    )
    whole.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tries the command itself on small stand-ins (default: cuda)",
    )
    whole.add_argument("--minutes", type=float, default=10.0, help="time for all of it (default: 10)")
    for command in (training, writing, scaled, saving, profiled, choices):
        command.add_argument("--recipe", default="quickstart", help="a shipped recipe or a YAML file (default: quickstart)")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    for command in (training, loading, corpus, writing, scaled, saving, operators, profiled, choices, whole):
        command.add_argument("--output", help="also write the figures, with hardware and versions, to this JSON file")
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args()


def throughput(arguments: argparse.Namespace) -> Outcome:
    missing = [name for name in ("numpy", "pydantic", "safetensors", "transformers", "yaml") if not find_spec(name)]
    if missing:
        raise UserError(
            f"throughput needs {', '.join(missing)}, which this Python lacks; install it, or bring its wheels "
            "there (docs/kernels.md)"
        )
    from dist_metaxlm.benchmarking.kernels.partial import keeper
    from dist_metaxlm.benchmarking.training.report import measure_throughput

    result = measure_throughput(
        arguments.recipe,
        arguments.overrides,
        arguments.steps,
        arguments.batch_tokens,
        arguments.rows,
        arguments.documents,
        arguments.seconds,
        keeper(arguments.output),
    )
    return result, (
        f"{result['model']}: {result['ours_tokens_per_second']:,.0f} tokens/s, Hugging Face padded "
        f"{result['huggingface_tokens_per_second']:,.0f} tokens/s, ratio {result['ratio']:.2f} "
        f"({result['ratio_min']:.2f} to {result['ratio_max']:.2f}), largest loss difference "
        f"{result['largest_loss_difference']:.1e}"
    )


def data(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.data.loading import measure_data

    result = measure_data(arguments.tokens, arguments.runs, arguments.metrics, arguments.store)
    languages = counted(result["languages"], "language")
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


def cleaning(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.data.cleaning import measure_cleaning

    result = measure_cleaning(arguments.megabytes)
    return result, "\n".join(
        f"{run['megabytes']} MB: {run['megabytes_per_second']} MB/s, {run['peak_resident_megabytes']:.0f} MB resident at "
        f"most; planted {run['planted']}, dropped {run['dropped']}"
        for run in result["runs"]
    )


def store(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.data.store import measure_store

    result = measure_store(arguments.recipe, arguments.overrides, Path(arguments.scratch), arguments.repeats)
    ratios = ", ".join(f"{name} {value}" for name, value in result.items() if "_against_" in name)
    return result, f"{result['text_bytes'] / 1e6:.0f} MB: {ratios}; same files: {result['identical_files']}"


def scaling(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.scaling.nodes import on_nodes
    from dist_metaxlm.benchmarking.scaling.report import plot, table
    from dist_metaxlm.benchmarking.scaling.scaling import Experiment, measure_scaling

    place, counts = None, arguments.ranks or (1, 2, 4)
    if arguments.hostfile is not None:
        place, counts = on_nodes(
            arguments.hostfile, arguments.launcher, arguments.master_port, Path(__file__).resolve(), arguments.link_megabits
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


def saving(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.training.saving import measure_saving

    result = measure_saving(
        arguments.recipe, arguments.overrides, Path(arguments.scratch), arguments.repeats, arguments.tokens
    )
    return result, (
        f"{result['megabytes']:.0f} MB on {counted(result['ranks'], 'rank')}: training stands still for "
        f"{result['background_stall_seconds']:.3f} s instead of {result['blocking_seconds']:.2f} s "
        f"({result['stall_share_of_blocking']:.1%}; {result['stall_share_min']:.1%} to {result['stall_share_max']:.1%}), "
        f"for {result['copy_seconds']:.3f} s ({result['copy_share_of_blocking']:.1%}) where no step hides the copy; "
        f"the steps beside a save take {result['slowed_seconds']:.2f} s longer"
    )


def kernels(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.kernels.kernels import line, measure_kernels
    from dist_metaxlm.benchmarking.kernels.partial import keeper

    keep = keeper(arguments.output)
    if arguments.configurations:
        from dist_metaxlm.benchmarking.kernels.configurations import measure_configurations, table

        found = measure_configurations(arguments.device, arguments.repeats, arguments.only, arguments.seconds, keep)
        return found, table(found)
    result = measure_kernels(arguments.device, arguments.repeats, arguments.only, arguments.seconds, keep)
    return result, "\n".join(line(row) for row in result["cases"])


def step(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.training.step import measure_step, table

    result = measure_step(arguments.recipe, arguments.overrides, arguments.phase, arguments.steps, arguments.trace)
    return result, table(result)


def cpu(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.training.cpu import measure_cpu, table

    result = measure_cpu(arguments.recipe, arguments.overrides, arguments.phase, arguments.repeats, arguments.parts)
    return result, table(result)


def gpu(arguments: argparse.Namespace) -> Outcome:
    from dist_metaxlm.benchmarking.kernels.gpu_check import check_gpu, runner
    from dist_metaxlm.benchmarking.kernels.partial import keeper

    result = check_gpu(
        arguments.device,
        arguments.minutes,
        lambda line: print(line, file=sys.stderr, flush=True),
        runner(Path(__file__).resolve()),
        keeper(arguments.output),
    )
    problems = [f"{kind}: {'; '.join(result[kind])}" for kind in ("wrong", "slower", "unfinished") if result[kind]]
    return result, "\n".join(problems) or "nothing is wrong or slower"


COMMANDS = {
    "throughput": throughput,
    "data": data,
    "cleaning": cleaning,
    "store": store,
    "scaling": scaling,
    "saving": saving,
    "kernels": kernels,
    "step": step,
    "cpu": cpu,
    "gpu": gpu,
}


def main() -> int:
    arguments = parse()
    if arguments.command == "scaling" and arguments.job is not None:
        from dist_metaxlm.benchmarking.scaling.worker import main as take_part

        take_part(arguments.job)
        return EXIT_DONE
    if arguments.output:
        from dist_metaxlm.reporting.metrics import check_output

        check_output(Path(arguments.output))
    result, sentence = COMMANDS[arguments.command](arguments)
    if int(os.environ.get("RANK") or 0):
        return EXIT_DONE  # all ranks have measured together
    if arguments.output:
        from dist_metaxlm.benchmarking.kernels.partial import finished

        Path(arguments.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        finished(arguments.output)
    print(json.dumps(result) if arguments.json else sentence)
    return EXIT_BUG if any(result.get(kind) for kind in ("wrong", "slower", "unfinished")) else EXIT_DONE


if __name__ == "__main__":
    run_command(main)
