"""Predict published training runs and show the error of each row and over groups.

examples:
  metaxlm plan check rows.tsv
  metaxlm plan check rows.tsv --json
  metaxlm plan check rows.tsv --markdown > rows.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from dist_metaxlm.command_line import Parser
from dist_metaxlm.invocation import program

WIDTH = 110
"""Least width of the tables in characters."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__, prog=f"{program('plan')} check")
    parser.add_argument("rows", metavar="ROWS.tsv", help="table of published runs; columns: docs/planning.md")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown, with the rows' sources")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    arguments = parse(words)
    from dist_metaxlm.planning.speed.check import check_rows, report_markdown, report_tables
    from dist_metaxlm.planning.speed.rows import read_rows

    report = check_rows(read_rows(arguments.rows))
    if arguments.json:
        print(json.dumps(report.as_dict(), indent=1))
        return
    if arguments.markdown:
        print(report_markdown(report))
        return
    from rich.console import Console

    console = Console()
    console = console if console.width >= WIDTH else Console(width=WIDTH)
    for renderable in report_tables(report):
        console.print(renderable, soft_wrap=isinstance(renderable, str))
