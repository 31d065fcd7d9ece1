"""Evaluate a run: held-out perplexity and sentence retrieval of a phase, or the report of the whole run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dist_metaxlm.errors import UserError, run_command

EXAMPLES = """examples:
  python launch/evaluate.py --run_dir runs/quickstart --phase cross
  python launch/evaluate.py --run_dir runs/quickstart --phase untrained --tasks perplexity --json
  python launch/evaluate.py --run_dir runs/quickstart --report        # summary.json, report.html and one table
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", required=True, type=Path, help="folder of the run, such as runs/quickstart")
    parser.add_argument("--phase", help="untrained, meta, cross or joint: what to evaluate")
    parser.add_argument("--tasks", default="perplexity,retrieval", help="comma-separated, default: %(default)s")
    parser.add_argument("--min_candidates", type=int, default=400,
                        help="sentences a language needs to enter the mean P@1, default: %(default)s")
    parser.add_argument("--report", action="store_true", help="write summary.json and report.html of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    if not arguments.phase and not arguments.report:
        raise UserError("neither --phase nor --report is given; name a phase to evaluate, or ask for the report")
    outcome = None
    if arguments.phase:
        outcome = evaluate(arguments)
    if arguments.report:
        outcome = report(arguments)
    if arguments.json:
        print(json.dumps(outcome))


def evaluate(arguments: argparse.Namespace) -> dict:
    """Evaluate one phase; print its table unless JSON was asked for."""
    from dist_metaxlm.evaluation.run import evaluate_run
    from dist_metaxlm.reporting.table import print_evaluation

    tasks = [task.strip() for task in arguments.tasks.split(",")]
    outcome = evaluate_run(arguments.run_dir, arguments.phase, tasks, arguments.min_candidates)
    if not arguments.json:
        print_evaluation(outcome)
    return outcome


def report(arguments: argparse.Namespace) -> dict:
    """Write the summary and the page of a run; print its table unless JSON was asked for."""
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
