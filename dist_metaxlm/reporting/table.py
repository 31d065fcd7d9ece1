"""Results of a run and of one evaluation as tables for the terminal; plain text if there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import IO, Literal, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from dist_metaxlm.invocation import as_typed
from dist_metaxlm.reporting.baselines import baseline_briefs, other_perplexity, standing
from dist_metaxlm.reporting.metrics import UNTRAINED
from dist_metaxlm.reporting.results import Accuracy, Baselines, Evaluation, WordsFound
from dist_metaxlm.reporting.sections import number, short
from dist_metaxlm.reporting.summary import Summary, evaluation_brief
from dist_metaxlm.text import pluralize

Of = TypeVar("Of")


def print_outcome(summary: Summary, stream: IO[str] | None = None) -> None:
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
    for of in summary["standing"].values():
        if of["sentence"]:
            console.print(of["sentence"], soft_wrap=True)
    console.print(*_comparison(summary), end="", soft_wrap=True)


def _comparison(summary: Summary) -> list[str]:
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


def print_evaluation(result: Evaluation, stream: IO[str] | None = None, baselines: Baselines | None = None) -> None:
    """One evaluation: a row for every language, beside it what needs no model (`baselines`), and the means."""
    console = console_of(stream)
    retrieval, perplexity = result.get("retrieval", {}), result.get("perplexity", {})
    best = result.get("best_layer")
    table = table_of(console, f"phase {result['phase']}")
    table.add_column("language")
    table_of_words = baselines.get("frequencies") if baselines else None
    shared = baselines.get("overlap") if baselines else None
    frequencies = table_of_words["perplexity"] if table_of_words and perplexity else {}
    overlap = shared["retrieval"] if shared and retrieval else {}
    headings = ["perplexity"] if perplexity else []
    headings += ["word frequencies"] if frequencies else []
    headings += ["candidates", "to English", "from English"] if retrieval else []
    for heading in headings + (["overlap, to", "from"] if overlap else []):
        table.add_column(heading, justify="right")
    for language in dict.fromkeys([*perplexity, *retrieval]):
        row = [language] + ([number(perplexity.get(language), 1)] if perplexity else [])
        row += [number(frequencies.get(language), 1)] if frequencies else []
        scores = retrieval.get(language)
        if retrieval and scores:
            shown = [
                f"{max(way) if best is None else way[best]:.3f}" for way in (scores["to_english"], scores["from_english"])
            ]
            row += [str(scores["candidates"]), *shown]
            other = overlap.get(language)
            ways = (None, None) if other is None else (other["to_english"], other["from_english"])
            row += [number(way, 3) for way in ways if overlap]
        table.add_row(*row)
    if table.row_count:
        console.print(table)
    print_means(result, stream)


def print_means(result: Evaluation, stream: IO[str] | None = None) -> None:
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
    parts += _words_found(result.get("fill_mask"))
    console_of(stream).print(f"{result['phase']}: {'; '.join(parts)} ({number(result['seconds'], 1)} s)", soft_wrap=True)


def _words_found(words: WordsFound | None) -> list[str]:
    """Fill-mask accuracy in one part of a line: first guess, and first five guesses."""
    if words is None:
        return []
    shown = [
        f"{label} {100 * share['top1']:.1f}% ({100 * share['top5']:.1f}% in five guesses)"
        for share, label in ((words["en"], "English"), (words["others"], "others"))
        if share
    ]
    return [f"hidden words found: {', '.join(shown)}"] if shown else []


def print_baselines(results: Mapping[str, Evaluation], raw: Baselines, stream: IO[str] | None = None) -> None:
    """After evaluations: a line for what needs no model, and for each phase whether it is better than that."""
    console, baselines = console_of(stream), baseline_briefs(raw)
    for name, brief in baselines.items():
        parts = []
        if brief.get("english_perplexity") is not None:
            parts.append(f"English perplexity {number(brief['english_perplexity'], 1)}")
        if brief.get("other_perplexity") is not None:
            parts.append(f"others {number(brief['other_perplexity'], 1)}")
        if brief.get("english_prose_perplexity") is not None:
            parts.append(f"English prose {number(brief['english_prose_perplexity'], 1)}")
        parts += _words_found(brief.get("fill_mask"))
        parts += [f"mean P@1 {brief['mean_p_at_1']:.3f}"] if "mean_p_at_1" in brief else []
        console.print(f"{name} (no model): {'; '.join(parts)}", soft_wrap=True)
    briefs = {name: evaluation_brief(result) for name, result in results.items()}
    for name, result in results.items():
        sentence = "" if name == "untrained" else standing(name, briefs, baselines, result.get("languages"))["sentence"]
        if sentence:
            console.print(sentence, soft_wrap=True)


def console_of(stream: IO[str] | None) -> Console:
    """A console on the terminal or the given stream; wide enough for a table if it is not a terminal."""
    target = stream or sys.stdout
    # Without a terminal rich assumes 80 columns; log lines have no such limit.
    return Console(file=target, width=None if target.isatty() else 120, highlight=False)


def table_of(console: Console, title: str) -> Table:
    """An empty table in the style of the console."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII)


def _outcome(summary: Summary, console: Console) -> Table:
    phases, evaluation = summary["phases"], summary["evaluation"]
    columns = _columns(phases, evaluation)
    evaluation = evaluation | summary["baselines"]
    columns += list(summary["baselines"])
    table = table_of(console, f"run {summary['recipe']}")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")

    def row(label: str, source: Mapping[str, Of], show: Callable[[Of], str]) -> None:
        cells = [show(source[name]) if name in source else "" for name in columns]
        if any(cell not in ("", "–") for cell in cells):
            table.add_row(label, *cells)

    row("steps", phases, lambda p: f"{p['steps']:,}")
    row("tokens", phases, lambda p: short(p["tokens"]))
    row("loss, first", phases, lambda p: number(p["first_loss"]))
    row("loss, final", phases, lambda p: number(p["final_loss"]))
    objectives = dict.fromkeys(name for of in phases.values() if len(of["final_losses"]) > 1 for name in of["final_losses"])
    for name in objectives:
        row(f"{name}, final", {phase: of["final_losses"].get(name) for phase, of in phases.items()}, number)
    row("held-out bits per byte", phases, lambda p: number(p.get("heldout_bits_per_byte"), 3))
    row("  of word frequencies", phases, lambda p: number(p.get("heldout_word_frequencies"), 3))
    row("tokens/s", phases, lambda p: short(p["tokens_per_second"]))
    row("minutes", phases, lambda p: number(p["seconds"] / 60, 1) if p["seconds"] else "")
    row("English perplexity", evaluation, lambda e: number(e.get("english_perplexity"), 1))
    row("English prose perplexity", evaluation, lambda e: number(e.get("english_prose_perplexity"), 1))
    row("other languages' perplexity", evaluation, lambda e: number(e.get("other_perplexity"), 1))
    nothing: WordsFound = {"en": None, "others": None}
    hidden = {name: e.get("fill_mask", nothing) for name, e in evaluation.items()}
    row("English hidden words, first guess", hidden, lambda words: _share(words["en"], "top1"))
    row("English hidden words, first five", hidden, lambda words: _share(words["en"], "top5"))
    row("others' hidden words, first guess", hidden, lambda words: _share(words["others"], "top1"))
    row("others' hidden words, first five", hidden, lambda words: _share(words["others"], "top5"))
    row("retrieval P@1, best layer", evaluation, lambda e: number(e.get("mean_p_at_1"), 3))
    row("best layer", evaluation, lambda e: _known(e.get("best_layer", "")))
    row("languages", evaluation, lambda e: str(e.get("languages") or ""))
    row("candidates, least", evaluation, lambda e: _known(e.get("candidates_min", "")))
    return table


def _columns(phases: Mapping[str, object], evaluation: Mapping[str, object]) -> list[str]:
    """Checkpoints in order: untrained, the phases, other checkpoints after their phase."""
    names = list(dict.fromkeys([*evaluation, *phases]))
    order = [UNTRAINED, *dict.fromkeys([*phases, *(name.split("@")[0] for name in evaluation if name != UNTRAINED)])]
    return sorted(names, key=lambda name: (order.index(name.split("@")[0]), name))


def _share(accuracy: Accuracy | None, top: Literal["top1", "top5"]) -> str:
    return "–" if accuracy is None else f"{100 * accuracy[top]:.1f}%"


def _known(value: object) -> str:
    return "–" if value is None else str(value)
