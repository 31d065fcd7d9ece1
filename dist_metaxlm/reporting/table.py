"""Results of a run and of one evaluation as tables for the terminal; plain text if there is no terminal."""

from __future__ import annotations

import sys
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table

from dist_metaxlm.invocation import as_typed
from dist_metaxlm.reporting.metrics import CHECKPOINT_ORDER
from dist_metaxlm.reporting.sections import number, short
from dist_metaxlm.reporting.summary import other_perplexity
from dist_metaxlm.text import pluralize


def print_outcome(summary: dict[str, Any], stream: IO[str] | None = None) -> None:
    """One table of a run: a column for every checkpoint, a row for every measure."""
    console = console_of(stream)
    console.print(_outcome(summary, console))
    without = [name for name, of in summary["evaluation"].items() if of.get("languages") == 0]
    if without:
        console.print(
            f"no mean P@1 of {', '.join(without)}: no language has as many candidates as --min_candidates of "
            f"{as_typed('metaxlm evaluate')} asked for",
            soft_wrap=True,
        )
    console.print(*_comparison(summary), end="", soft_wrap=True)


def _comparison(summary: dict[str, Any]) -> list[str]:
    """One line that compares retrieval after cross with the untrained model and with meta; nothing without both."""
    evaluation = summary["evaluation"]
    names = {"untrained": "the untrained model", "meta": "meta"}
    ratios = {"untrained": summary["retrieval_ratio_untrained"], "meta": summary["retrieval_ratio"]}
    baselines = [
        f"{ratio:.1f} times {names[name]} ({evaluation[name]['mean_p_at_1']:.3f})" for name, ratio in ratios.items() if ratio
    ]
    if not baselines:
        return []
    return [f"retrieval P@1 after cross: {evaluation['cross']['mean_p_at_1']:.3f}, {', '.join(baselines)}\n"]


def print_evaluation(result: dict[str, Any], stream: IO[str] | None = None) -> None:
    """One evaluation: a row for every language, and the means."""
    console = console_of(stream)
    retrieval, perplexity = result.get("retrieval", {}), result.get("perplexity", {})
    best = result.get("best_layer")
    table = table_of(console, f"phase {result['phase']}")
    table.add_column("language")
    for heading in (["perplexity"] if perplexity else []) + (
        ["candidates", "to English", "from English"] if retrieval else []
    ):
        table.add_column(heading, justify="right")
    for language in dict.fromkeys([*perplexity, *retrieval]):
        row = [language] + ([number(perplexity.get(language), 1)] if perplexity else [])
        scores = retrieval.get(language)
        if retrieval and scores:
            shown = [
                f"{max(scores[way]) if best is None else scores[way][best]:.3f}" for way in ("to_english", "from_english")
            ]
            row += [str(scores["candidates"]), *shown]
        table.add_row(*row)
    if table.row_count:
        console.print(table)
    print_means(result, stream)


def print_means(result: dict[str, Any], stream: IO[str] | None = None) -> None:
    """One line of an evaluation: perplexity in English and of the others, mean P@1."""
    parts = []
    if "perplexity" in result and not result["perplexity"]:
        parts.append(
            "prose perplexity "
            + ", ".join(f"{language} {number(value, 1)}" for language, value in result.get("prose_perplexity", {}).items())
        )
    elif "perplexity" in result:
        parts.append(f"English perplexity {number(result['perplexity'].get('en'), 1)}")
        others = other_perplexity(result["perplexity"])
        if others is not None:
            parts[-1] += f", others {number(others, 1)}"
    retrieval = result.get("retrieval", {})
    if result.get("mean_p_at_1") is not None:
        languages = sum(scores["counted"] for scores in retrieval.values())
        parts.append(
            f"mean P@1 {result['mean_p_at_1']:.3f} at layer {result['best_layer']} over "
            f"{pluralize(languages, 'language')}, both directions"
        )
    elif retrieval:
        parts.append(f"no mean P@1: no language has {result['min_candidates']} candidates, see --min_candidates")
    console_of(stream).print(f"{result['phase']}: {'; '.join(parts)} ({number(result['seconds'], 1)} s)", soft_wrap=True)


def console_of(stream: IO[str] | None) -> Console:
    """A console on the terminal or the given stream; wide enough for a table if it is not a terminal."""
    target = stream or sys.stdout
    # Without a terminal rich assumes 80 columns; log lines have no such limit.
    return Console(file=target, width=None if target.isatty() else 120, highlight=False)


def table_of(console: Console, title: str) -> Table:
    """An empty table in the style of the console."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII)


def _outcome(summary: dict[str, Any], console: Console) -> Table:
    phases, evaluation = summary["phases"], summary["evaluation"]
    columns = [name for name in CHECKPOINT_ORDER if name in phases or name in evaluation]
    table = table_of(console, f"run {summary['recipe']}")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")

    def row(label: str, source: dict[str, Any], show: Any) -> None:
        cells = [show(source[name]) if name in source else "" for name in columns]
        if any(cell not in ("", "–") for cell in cells):
            table.add_row(label, *cells)

    row("steps", phases, lambda p: f"{p['steps']:,}")
    row("tokens", phases, lambda p: short(p["tokens"]))
    row("loss, first", phases, lambda p: number(p["first_loss"]))
    row("loss, final", phases, lambda p: number(p["final_loss"]))
    objectives = dict.fromkeys(name for of in phases.values() if len(of["final_losses"]) > 1 for name in of["final_losses"])
    for name in objectives:
        row(f"{name}, final", phases, lambda p, name=name: number(p["final_losses"].get(name)))
    row("tokens/s", phases, lambda p: short(p["tokens_per_second"]))
    row("minutes", phases, lambda p: number(p["seconds"] / 60, 1) if p["seconds"] else "")
    row("English perplexity", evaluation, lambda e: number(e["english_perplexity"], 1))
    row("English prose perplexity", evaluation, lambda e: number(e["english_prose_perplexity"], 1))
    row("other languages' perplexity", evaluation, lambda e: number(e["other_perplexity"], 1))
    row("retrieval P@1, best layer", evaluation, lambda e: number(e.get("mean_p_at_1"), 3))
    row("best layer", evaluation, lambda e: _known(e.get("best_layer", "")))
    row("languages", evaluation, lambda e: str(e.get("languages") or ""))
    row("candidates, least", evaluation, lambda e: _known(e.get("candidates_min", "")))
    return table


def _known(value: Any) -> str:
    return "–" if value is None else str(value)
