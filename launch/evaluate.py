#!/usr/bin/env python3
"""Evaluate phases of a run on held-out text (perplexity, sentence retrieval), or write the report of the whole run.

examples:
  python launch/evaluate.py --run_dir runs/quickstart --phase cross
  python launch/evaluate.py --run_dir runs/quickstart --phase untrained meta cross --tasks perplexity --json
  python launch/evaluate.py --run_dir runs/quickstart --report

Each phase's result goes to evaluation/PHASE.json of the run; --report writes summary.json and report.html from what is
there and prints one table.
"""

from __future__ import annotations

import argparse
import json

from dist_metaxlm.errors import UserError, run_command


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True, help="folder of the run, such as runs/quickstart")
    parser.add_argument("--phase", nargs="+", default=[], metavar="PHASE",
                        help="untrained (the recipe's initialisation), meta, cross, joint: one or several")
    parser.add_argument("--tasks", default="perplexity,retrieval", help="comma-separated (default: %(default)s)")
    parser.add_argument("--min_candidates", type=int, default=400,
                        help="sentences a language needs to enter the mean P@1 (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="write the summary and the page of the run")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON object: the results by phase or, with --report, the summary")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if not arguments.phase and not arguments.report:
        raise UserError("neither --phase nor --report is given; name a phase to evaluate, or ask for the report")
    outcome = evaluate(arguments) if arguments.phase else {}
    if arguments.report:
        outcome = report(arguments)
    if arguments.json:
        print(json.dumps(outcome))


def evaluate(arguments: argparse.Namespace) -> dict:
    from dist_metaxlm.evaluation.run import evaluate_run
    from dist_metaxlm.reporting.table import print_evaluation, print_means

    tasks = [task.strip() for task in arguments.tasks.split(",")]
    show = print_evaluation if len(arguments.phase) == 1 else print_means
    results = {}
    for phase in arguments.phase:
        results[phase] = evaluate_run(arguments.run_dir, phase, tasks, arguments.min_candidates)
        if not arguments.json:
            show(results[phase])
    return results


def report(arguments: argparse.Namespace) -> dict:
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
