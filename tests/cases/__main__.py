"""Run all cases and print row, kind, case, observed, expected: `make check-cases`.

usage: python tests/cases [--without_commands] [--output FILE.md] [--recipes FOLDER]

Exits with 1 if any differs. With --recipes, the corpus step of every recipe below a folder is tried as well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import case_commands
import case_corpora
import case_lines
import case_models
import case_start
import case_tasks
from case import KINDS, Case

from dist_metaxlm.errors import print_any_text
from dist_metaxlm.training.run.environment import environment

QUICK = (case_lines, case_corpora, case_models, case_start, case_tasks)
HEAD = "| row | kind | case | observed | expected | ok |\n|---|---|---|---|---|---|"


def cell(value: object) -> str:
    """A value for a table: on one line, of printable ASCII, at most 160 characters."""
    text = ascii(sorted(value, key=str) if isinstance(value, set) else value).replace("|", "\\|")
    return text if len(text) <= 160 else f"{text[:160]}..."


def line(case: Case, observed: Any) -> str:
    """A row of the table."""
    ok = "yes" if observed == case.expected else "NO"
    return f"| {case.row} | {KINDS[case.row]} | {case.name} | {cell(observed)} | {cell(case.expected)} | {ok} |"


def run(cases: Sequence[Case]) -> tuple[list[str], int]:
    """Rows of the table, printed as they come, and the number of cases that differ."""
    lines, wrong = [], 0
    print(HEAD)
    with tempfile.TemporaryDirectory() as place:
        for number, case in enumerate(cases):
            folder = Path(place) / str(number)
            folder.mkdir()
            with contextlib.redirect_stdout(io.StringIO()):
                observed = case.observe(folder)
            wrong += observed != case.expected
            lines.append(line(case, observed))
            print(lines[-1], flush=True)
    return lines, wrong


def write(path: Path, lines: Sequence[str], wrong: int) -> None:
    """The table with the facts of the run."""
    facts = environment()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "deepspeed", "transformers"))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [
        "# Situations of bug reports",
        "",
        f"`make check-cases` on {facts['date']}, commit {facts['commit']}, {facts['device']} ({facts['cpu_cores']} cores), "
        f"Python {facts['python']}, {versions}.",
        "",
        f"{len(lines) - wrong} of {len(lines)} as expected. `refused`: a sentence with these words, exit code 2. Row 12: "
        "offload of the optimizer against no offload, two ranks, largest relative difference of losses and gradient norms.",
        "",
        HEAD,
        *lines,
        "",
    ]
    path.write_text("\n".join(text), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without_commands", action="store_true", help="leave out the cases that run commands")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file too")
    parser.add_argument("--recipes", type=Path, help="folder whose recipes' corpus step is tried as well")
    options = parser.parse_args()
    print_any_text()
    modules = QUICK if options.without_commands else (*QUICK, case_commands)
    cases = sorted((case for module in modules for case in module.CASES), key=lambda case: case.row)
    lines, wrong = run(cases)
    if options.output:
        write(options.output, lines, wrong)
    if options.recipes:
        case_corpora.recipes(options.recipes)
    print(f"{len(lines) - wrong} of {len(lines)} as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
