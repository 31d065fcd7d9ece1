"""Task scores of one or several encoders as terminal tables: English, the others, the gap; by script and by language."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO

from rich.console import Console
from rich.table import Table

from dist_metaxlm.reporting.results import Interval, TaskResult
from dist_metaxlm.reporting.table import console_of, table_of

XTREME = ("xnli", "pawsx", "udpos", "wikiann", "xquad", "mlqa", "tydiqa", "tatoeba")
"""Tasks of XTREME that the evaluation has; the ninth is BUCC."""
Results = Mapping[str, Mapping[str, TaskResult]]
"""Encoder -> task -> result."""


def print_tasks(results: Results, stream: IO[str] | None = None) -> None:
    """One table of all encoders and tasks, then one by language for every task; failed tasks as lines."""
    console = console_of(stream or sys.stdout)
    console.print(_overview(results, console))
    for task in dict.fromkeys(task for of in results.values() for task, result in of.items() if "error" not in result):
        console.print(_by_language(task, results, console))
    for name, of in results.items():
        if average := xtreme_average(of):
            console.print(f"{name}: {average}", soft_wrap=True)
        for task, result in of.items():
            if "error" in result:
                console.print(f"{name}, {task}: {result['error']}", soft_wrap=True)


def shown(figure: Interval | None) -> str:
    """`61.2 ± 0.8` of {mean, half_width}, in per cent; the half width only with several seeds."""
    if figure is None:
        return "–"
    width = figure.get("half_width")
    return f"{100 * figure['mean']:.1f}" + (f" ± {100 * width:.1f}" if width is not None else "")


def xtreme_average(results: Mapping[str, TaskResult]) -> str | None:
    """A sentence with the mean over XTREME's tasks of an encoder; None for fewer than two.

    Each task counts as in XTREME's table 2: mean over all languages, English included, of questions the mean of F1 and EM.
    """
    scores = {task: results[task]["xtreme"] for task in XTREME if "xtreme" in results.get(task, {})}
    if len(scores) < 2:
        return None
    tasks = ", ".join(f"{task} {100 * score:.1f}" for task, score in scores.items())
    mean = 100 * sum(scores.values()) / len(scores)
    return f"average of {len(scores)} of XTREME's 9 tasks, English included: {mean:.1f} ({tasks})"


def _overview(results: Results, console: Console) -> Table:
    table = table_of(
        console,
        "per cent, mean over seeds ± half the 95% interval; gap: English (or the language that was "
        "learnt, in brackets) minus the mean of the others; all: mean of all languages, as XTREME averages",
    )
    for name in ("task", "score", "encoder", "English", "others", "gap", "all", "languages"):
        table.add_column(name, justify="left" if name in ("task", "score", "encoder") else "right")
    for task in dict.fromkeys(task for of in results.values() for task in of):
        for name, of in results.items():
            result = of.get(task)
            if result is None or "error" in result:
                continue
            if result["kind"] == "retrieval":
                layer = result["layer"]
                table.add_row(
                    task,
                    f"P@1, layer {layer}",
                    name,
                    "",
                    f"{100 * result['per_layer']['cosine'][layer]:.1f}",
                    "",
                    "",
                    str(len(result["languages"])),
                )
                continue
            if result["kind"] == "alignment":
                layer, name_of = result["layer"], "aer" if "aer" in result["per_layer"] else "f1"
                table.add_row(
                    task,
                    f"{name_of.upper()}, layer {layer}",
                    name,
                    "",
                    f"{100 * result['per_layer'][name_of][layer]:.1f}",
                    "",
                    "",
                    str(len(result["languages"])),
                )
                continue
            figures = result["table"]
            learnt = figures.get("source_language", "en")
            table.add_row(
                task,
                result["metric"],
                name,
                shown(figures["source"]) + f" ({learnt})" * (learnt != "en"),
                shown(figures["others"]),
                shown(figures["gap"]),
                shown(figures.get("all")),
                str(len(figures["languages"])),
            )
    return table


def _by_language(task: str, results: Results, console: Console) -> Table:
    table = table_of(console, task)
    columns = {name: cells_by_language(of[task]) for name, of in results.items() if task in of and "error" not in of[task]}
    table.add_column("script")
    table.add_column("language")
    for name in columns:
        table.add_column(name, justify="right")
    for row in sorted({row for cells in columns.values() for row in cells}):
        table.add_row(*row, *(cells.get(row, "") for cells in columns.values()))
    return table


def cells_by_language(result: TaskResult) -> dict[tuple[str, str], str]:
    """(script, language) -> figure of one result; for retrieval both directions by cosine and by CSLS, at its layer; for
    alignment, error rate (lower is better), F1, precision and recall at its layer."""
    if result["kind"] == "alignment":
        return {
            (of["script"], language): "  ".join(
                f"{name} {100 * scores[result['layer']]:.1f}"
                for name, scores in (("AER", of.get("aer")), ("F1", of["f1"]), ("P", of["precision"]), ("R", of["recall"]))
                if scores is not None
            )
            for language, of in result["languages"].items()
        }
    if result["kind"] != "retrieval":
        table = result["table"]
        cells = {(of["script"], language): shown(of) for language, of in table["languages"].items()}
        return cells | {(script, "(mean)"): shown(of) for script, of in table["scripts"].items()}
    layer = result["layer"]
    return {
        (of["script"], language): "  ".join(
            f"{name} {100 * ways['to_english'][layer]:.1f}/{100 * ways['from_english'][layer]:.1f}"
            for name, ways in (("cosine", of["cosine"]), ("csls", of["csls"]))
        )
        for language, of in result["languages"].items()
    }
