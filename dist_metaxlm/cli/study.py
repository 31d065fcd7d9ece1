"""Studies. two-phase: whether training on English first and on all languages afterwards beats one phase; fake-english:
whether two languages that differ only in their token ids become aligned.

examples:
  metaxlm study two-phase --size tiny
  metaxlm study two-phase --size tiny --recipe mine.yaml --ratios 0.25 0.5 --seeds 1 2 3 --jobs 2
  metaxlm study two-phase --size small --recipe mine.yaml --tasks udpos,xnli --task_data data/xtreme
  metaxlm study two-phase --size tiny --output runs/study-tiny --json phases.cross.alpha=0.3
  metaxlm study fake-english
  metaxlm study fake-english --no_parallel --text mine.txt --output runs/fake phases.joint.steps=12000

two-phase: the recipe gives text, phases and optimiser; the size gives the model and N; more --seeds and --ratios can be
added to an existing study. A study that is run again continues from its last state. `metaxlm study two-phase --help` has all
its options; the arms are in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.invocation import program
from dist_metaxlm.text import did_you_mean

ARMS = ["meta+cross", "joint", "joint matched", "cross only", "meta only"]
CONTROLS = ["joint+joint", "reversed", "meta+cross replay", "meta+cross clm"]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    words = sys.argv[1:] if words is None else words
    asked = next((word for word in words if word in STUDIES), None)
    if asked is None and not {"-h", "--help"} & {*words}:
        first = next((word for word in words if "=" not in word and not word.startswith("-")), "")
        raise UserError(
            f"no study is named{did_you_mean(first, STUDIES)} say which: metaxlm study two-phase ... or "
            "metaxlm study fake-english ..."
        )
    parser = Parser(__doc__, prog=program("study"))
    parser.add_argument(
        "study", choices=tuple(STUDIES), help="which question; `metaxlm study two-phase --help` has its options"
    )
    if asked is not None:
        add_options, _ = STUDIES[asked]
        add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")
    return parser.parse_intermixed_args(words)


def two_phase_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="tiny", help="tiny (1M parameters, CPU), small (one GPU), base (default: tiny)")
    parser.add_argument("--recipe", default="quickstart", help="shipped recipe or YAML file (default: quickstart)")
    parser.add_argument("--output", help="folder of the study (default: runs/study-SIZE)")
    parser.add_argument("--tokens", type=int, help="N, tokens of an arm (default: the size's)")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.5], help="n1/N (default: 0.25 0.5)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of every arm (default: 1 2 3)")
    parser.add_argument(
        "--arms", nargs="+", default=ARMS, help=f"arms to run (default: {', '.join(ARMS)}; others: {', '.join(CONTROLS)})"
    )
    parser.add_argument(
        "--primary",
        nargs="+",
        default=[],
        metavar="MEASURE",
        help="outcomes that the verdict counts, such as udpos:English udpos:others retrieval; kept in plan.json before the "
        "first arm begins (default: English and the others of the first fine-tuned task, else the losses; and retrieval)",
    )
    parser.add_argument("--ranks", type=int, default=1, help="processes that train an arm (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="arms trained at once, sharing cores and GPUs (default: 1)")
    parser.add_argument("--points", type=int, default=5, help="checkpoints of a phase on the curves (default: 5)")
    parser.add_argument("--tasks", default="", help="tasks of metaxlm evaluate for finished arms, comma-separated")
    parser.add_argument("--task_data", default="data/xtreme", help="folder of the tasks' files (default: %(default)s)")
    parser.add_argument("--tasks_file", help="YAML that describes tasks")
    parser.add_argument("--finetune", nargs="+", default=[], metavar="KEY=VALUE", help="fine-tuning settings of the tasks")


def two_phase(arguments: argparse.Namespace) -> int:
    from dist_metaxlm.evaluation.tasks.run import TaskOptions
    from dist_metaxlm.study.study import StudyOptions, two_phase_study

    output = Path(arguments.output or f"runs/study-{arguments.size}")
    tasks = TaskOptions(
        Path(arguments.task_data),
        Path(arguments.tasks_file) if arguments.tasks_file else None,
        settings=tuple(arguments.finetune),
        seeds=(1,),
    )
    options = StudyOptions(
        output,
        arguments.size,
        arguments.recipe,
        tuple(arguments.overrides),
        arguments.tokens,
        tuple(arguments.ratios),
        tuple(arguments.seeds),
        tuple(arguments.arms),
        arguments.ranks,
        arguments.jobs,
        arguments.points,
        tasks=tuple(name.strip() for name in arguments.tasks.split(",") if name.strip()),
        task_options=tasks,
        primary=tuple(arguments.primary),
    )
    study = two_phase_study(options, logger(arguments))
    if arguments.json:
        print(json.dumps({key: value for key, value in study.items() if key != "results"}))
    else:
        print(f"{study['verdict']}\nreport: {output / 'report.html'}")
    return 0


def fake_english_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        nargs="+",
        default=["data/quickstart/corpus/text/en.txt"],
        metavar="FILE",
        help="English text (default: the quickstart corpus's)",
    )
    parser.add_argument(
        "--no_parallel",
        action="store_true",
        help="the first half of the sentences in English, the second in fake English (default: all in both)",
    )
    parser.add_argument("--output", default="runs/fake-english", help="folder of the run (default: %(default)s)")


def fake_english(arguments: argparse.Namespace) -> int:
    from dist_metaxlm.study.fake_english import FakeEnglishOptions, fake_english_study

    options = FakeEnglishOptions(
        Path(arguments.output), tuple(arguments.text), not arguments.no_parallel, tuple(arguments.overrides)
    )
    outcome = fake_english_study(options, logger(arguments))
    if arguments.json:
        print(json.dumps(outcome))
    else:
        print(
            f"{outcome['case']}: retrieval {outcome['retrieval']:.3f} at layer {outcome['layer']} among "
            f"{outcome['candidates']} sentences, {'above' if outcome['reached'] else 'NOT above'} {outcome['bar']}; "
            f"{options.output / 'fake-english.json'}"
        )
    return 0 if outcome["reached"] else 1


STUDIES: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "two-phase": (two_phase_arguments, two_phase),
    "fake-english": (fake_english_arguments, fake_english),
}


def logger(arguments: argparse.Namespace) -> Callable[[str], None]:
    return (lambda line: None) if arguments.json else (lambda line: print(line, flush=True))


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    return STUDIES[arguments.study][1](arguments)


if __name__ == "__main__":
    run_command(main)
