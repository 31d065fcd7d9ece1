#!/usr/bin/env python3
"""Does learning English first and all languages afterwards beat one phase? Several arms, ratios and seeds, one report.

examples:
  python launch/study.py two-phase --size tiny
  python launch/study.py two-phase --size tiny --recipe mine.yaml --ratios 0.25 0.5 --seeds 1 2 3 --jobs 2
  python launch/study.py two-phase --size small --recipe mine.yaml --tasks udpos,xnli --task_data data/xtreme
  python launch/study.py two-phase --size tiny --output runs/study-tiny --json phases.cross.alpha=0.3

The recipe gives text, phases and optimiser; the size gives the model and N. Run it again and it goes on where it was; more
--seeds and --ratios may be given to a study that is there. Arms: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dist_metaxlm.errors import run_command

ARMS = ["meta+cross", "joint", "joint matched", "cross only", "meta only"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("two-phase",), help="which question")
    parser.add_argument("--size", default="tiny", help="tiny (1M parameters, CPU), small (one GPU), base (default: tiny)")
    parser.add_argument("--recipe", default="quickstart", help="shipped recipe or YAML file (default: quickstart)")
    parser.add_argument("--output", help="folder of the study (default: runs/study-SIZE)")
    parser.add_argument("--tokens", type=int, help="N, tokens of an arm (default: the size's)")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.25, 0.5], help="n1/N (default: 0.25 0.5)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of every arm (default: 1 2 3)")
    parser.add_argument("--arms", nargs="+", default=ARMS, help="arms to run (default: all of " + ", ".join(ARMS) + ")")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train an arm (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="arms trained at once, sharing cores and GPUs (default: 1)")
    parser.add_argument("--points", type=int, default=5, help="checkpoints of a phase on the curves (default: 5)")
    parser.add_argument("--tasks", default="", help="tasks of launch/evaluate.py for finished arms, comma-separated")
    parser.add_argument("--task_data", default="data/xtreme", help="folder of the tasks' files (default: %(default)s)")
    parser.add_argument("--tasks_file", help="YAML that describes tasks")
    parser.add_argument("--finetune", nargs="+", default=[], metavar="KEY=VALUE", help="fine-tuning settings of the tasks")
    parser.add_argument("--json", action="store_true", help="print one JSON object: study.json without its curves")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe fields, after those of the size")
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse()
    from dist_metaxlm.evaluation.run_tasks import TaskOptions
    from dist_metaxlm.evaluation.study import StudyOptions, two_phase_study

    output = Path(arguments.output or f"runs/study-{arguments.size}")
    tasks = TaskOptions(Path(arguments.task_data), Path(arguments.tasks_file) if arguments.tasks_file else None,
                        settings=tuple(arguments.finetune), seeds=(1,))
    options = StudyOptions(
        output, arguments.size, arguments.recipe, tuple(arguments.overrides), arguments.tokens, tuple(arguments.ratios),
        tuple(arguments.seeds), tuple(arguments.arms), arguments.ranks, arguments.jobs, arguments.points,
        tasks=tuple(name.strip() for name in arguments.tasks.split(",") if name.strip()), task_options=tasks)
    log = (lambda line: None) if arguments.json else (lambda line: print(line, flush=True))
    study = two_phase_study(options, Path(__file__).resolve().with_name("pretrain.py"), log)
    if arguments.json:
        print(json.dumps({key: value for key, value in study.items() if key != "results"}))
    else:
        print(f"{study['verdict']}\nreport: {output / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
