"""Evaluate phases of a run, or any Hugging Face encoder: held-out text, retrieval, word alignment, tagging, ...

examples:
  metaxlm evaluate --run_dir runs/quickstart --phase cross
  metaxlm evaluate --run_dir runs/quickstart --phase untrained meta cross --tasks perplexity --json
  metaxlm evaluate --run_dir runs/quickstart --report
  metaxlm evaluate --run_dir runs/mine --phase meta cross --tasks tatoeba,udpos,xnli --task_data data/xtreme
  metaxlm evaluate --model models/xlm-roberta-base --tasks tatoeba,wikiann --task_data data/xtreme --languages de sw

perplexity, retrieval and fill_mask read the run's held-out text; what needs no model (overlap of tokens, word
frequencies, chance) is shown next to them and written to evaluation/baselines.json. The other tasks read files in the
formats of XTREME and the original sets (docs/evaluation.md), fine-tune in English with several seeds, and put a run
and all --model into one table. After an interruption the same command goes on with what is not finished. Each phase's
result is written to evaluation/PHASE.json (of tasks: PHASE-TASK.json) of the run; --report writes summary.json and
report.html from the existing results and prints one table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import EXIT_USER, UserError, run_command
from dist_metaxlm.invocation import program

if TYPE_CHECKING:
    from dist_metaxlm.reporting.results import Baselines, Evaluation, TaskResult
    from dist_metaxlm.reporting.summary import Summary


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("evaluate"))
    parser.add_argument("--run_dir", help="folder of the run, such as runs/quickstart")
    parser.add_argument(
        "--phase",
        nargs="+",
        default=[],
        metavar="PHASE",
        help="untrained (the recipe's initialisation) and phases of the run, such as meta or meta@400: one or several",
    )
    parser.add_argument("--model", nargs="+", default=[], metavar="FOLDER", help="Hugging Face folders to evaluate too")
    parser.add_argument(
        "--tasks",
        help="comma-separated: perplexity, retrieval, fill_mask (all three: default for a run), tatoeba, "
        "flores, parallel, alignment, udpos, wikiann, masakhaner, xnli, pawsx, xquad, mlqa, "
        "tydiqa, or one of --tasks_file",
    )
    parser.add_argument(
        "--min_candidates",
        type=int,
        default=400,
        help="sentences a language needs to enter the mean P@1 (default: %(default)s)",
    )
    parser.add_argument(
        "--data_directory",
        metavar="FOLDER",
        help="prepared data of the run, if they have moved (default: data.directory of its recipe)",
    )
    parser.add_argument("--report", action="store_true", help="write the summary and the page of the run")
    _add_task_options(parser)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: the results by phase or, with --report, the summary"
    )
    return parser.parse_args(words)


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--task_data", default="data/xtreme", help="folder of the tasks' files (default: %(default)s)")
    tasks.add_argument("--tasks_file", help="YAML that describes further tasks or gives the location of their files")
    tasks.add_argument("--languages", nargs="+", default=[], help="languages to test (default: all that have files)")
    tasks.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of fine-tuning (default: 1 2 3)")
    tasks.add_argument(
        "--finetune",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings such as epochs=3 learning_rate=1e-5 batch_size=16 max_train=2000 (default: XTREME's)",
    )
    tasks.add_argument(
        "--train_language", metavar="CODE", help="language to learn in (default: English, or the task's own train_language)"
    )
    tasks.add_argument(
        "--layer",
        type=int,
        help="layer of retrieval and alignment in the tables, 0: the embedding (default: 2/3 of the depth)",
    )
    tasks.add_argument("--without_special", action="store_true", help="pool sentences without <s> and </s>")
    tasks.add_argument("--max_pairs", type=int, help="pairs of each parallel file (default: all)")
    tasks.add_argument(
        "--keep_going",
        action="store_true",
        help="after a task that cannot run, continue with the next one; the exit code is still 2",
    )
    tasks.add_argument("--output", help="JSON file for the tasks' results of all encoders")
    tasks.add_argument("--save_predictions", metavar="FOLDER", help="write every example with its prediction as JSON Lines")
    tasks.add_argument(
        "--work",
        metavar="FOLDER",
        default="runs/evaluation",
        help="finished parts of --model, with which an interrupted evaluation goes on; those of a run are in its folder "
        "(default: %(default)s)",
    )
    tasks.add_argument("--again", action="store_true", help="evaluate again what is finished")


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    if not arguments.phase and not arguments.report and not arguments.model:
        raise UserError("neither --phase nor --report is given; name a phase to evaluate, or give --report")
    if (arguments.phase or arguments.report) and not arguments.run_dir:
        raise UserError("--phase and --report need --run_dir; name the folder of the run")
    fields = [word for word in arguments.phase if "=" in word]
    if fields:
        raise UserError(
            f"{fields[0]}: a run is evaluated with the recipe that it was trained with; only its data may be "
            "elsewhere, whose folder --data_directory names"
        )
    if arguments.data_directory and not arguments.phase:
        raise UserError(
            f"--data_directory {arguments.data_directory} is for the phases of a run; name one with --phase, or leave it out"
        )
    if arguments.max_pairs is not None and arguments.max_pairs < 2:
        raise UserError(
            f"--max_pairs {arguments.max_pairs} leaves no choice between pairs; give 2 or more, or leave it out for all"
        )
    if arguments.output:
        from dist_metaxlm.reporting.metrics import check_output

        check_output(Path(arguments.output))
    outcome: Mapping[str, object] = {}
    failed = False
    if arguments.phase or arguments.model:
        from dist_metaxlm.evaluation.tasks.run import split_tasks

        heldout, tasks = split_tasks(arguments.tasks, bool(arguments.phase), arguments.tasks_file, arguments.keep_going)
        outcome = evaluate(arguments, heldout) if heldout else {}
        if tasks:
            results = evaluate_tasks(arguments, tasks)
            outcome = {**outcome, "tasks": results}
            failed = any("error" in result for of in results.values() for result in of.values())
    if arguments.report:
        outcome = report(arguments)
    if arguments.json:
        print(json.dumps(outcome))
    return EXIT_USER if failed else 0


def evaluate_tasks(arguments: argparse.Namespace, names: list[str]) -> dict[str, dict[str, TaskResult]]:
    from dist_metaxlm import failpoints
    from dist_metaxlm.evaluation.resume.stop import stop_on_sigterm
    from dist_metaxlm.evaluation.tasks.run import TaskOptions, evaluate_encoders
    from dist_metaxlm.reporting.task_table import print_tasks

    options = TaskOptions(
        Path(arguments.task_data),
        Path(arguments.tasks_file) if arguments.tasks_file else None,
        tuple(arguments.languages),
        tuple(arguments.seeds),
        tuple(arguments.finetune),
        include_special=not arguments.without_special,
        max_pairs=arguments.max_pairs,
        keep_going=arguments.keep_going,
        data_directory=arguments.data_directory,
        layer=arguments.layer,
        train_language=arguments.train_language,
        work=Path(arguments.work),
        again=arguments.again,
        predictions=Path(arguments.save_predictions) if arguments.save_predictions else None,
    )
    log = partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    failpoints.plant(0)
    with stop_on_sigterm():
        results = evaluate_encoders(
            arguments.run_dir, arguments.phase, arguments.model, names, options, arguments.output, log
        )
    if not arguments.json:
        print_tasks(results)
    return results


def evaluate(arguments: argparse.Namespace, tasks: list[str]) -> dict[str, object]:
    from dist_metaxlm.evaluation.run import baselines_of, evaluate_run, former_result
    from dist_metaxlm.reporting.baselines import baseline_briefs
    from dist_metaxlm.reporting.metrics import UNTRAINED
    from dist_metaxlm.reporting.table import print_baselines, print_evaluation, print_means

    results: dict[str, Evaluation] = {}
    baselines: Baselines | None = None
    for phase in arguments.phase:
        results[phase] = evaluate_run(arguments.run_dir, phase, tasks, arguments.min_candidates, arguments.data_directory)
        if baselines is None:  # after the first phase, which has refused what cannot be evaluated
            baselines = baselines_of(arguments.run_dir, arguments.min_candidates, arguments.data_directory)
        if arguments.json:
            continue
        if len(arguments.phase) == 1:
            print_evaluation(results[phase], baselines=baselines)
        else:
            print_means(results[phase])
    assert baselines is not None
    if not arguments.json:
        untrained = results.get(UNTRAINED) or former_result(arguments.run_dir, UNTRAINED)
        print_baselines({**({UNTRAINED: untrained} if untrained else {}), **results}, baselines)
        if not untrained:
            print("not compared with the untrained model: evaluate it with --phase untrained")
    return {**results, "baselines": baseline_briefs(baselines)}


def report(arguments: argparse.Namespace) -> Summary:
    from dist_metaxlm.reporting.page import write_report
    from dist_metaxlm.reporting.summary import write_summary
    from dist_metaxlm.reporting.table import print_outcome

    summary = write_summary(arguments.run_dir)
    page = write_report(arguments.run_dir)
    if not arguments.json:
        print_outcome(summary)
        print(f"report: {page}")
    return summary


if __name__ == "__main__":
    run_command(main)
