"""HTML parts of the report page: heat maps, bars, tables and examples."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TypeVar

from dist_metaxlm.reporting.plots import objective_colours
from dist_metaxlm.reporting.records import Record
from dist_metaxlm.reporting.results import Evaluation, Frequencies, LanguageRetrieval

Item = TypeVar("Item")

SHOWN_LAYERS = 7
"""Maximum layers in a heat map; deeper models show evenly spaced ones, including the first and last."""


def escape(value: object) -> str:
    """Text for HTML, quotes included."""
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = 2) -> str:
    """Format a number: thousands separators, fewer decimals for larger values, a dash for None."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:,.{1 if abs(value) >= 10 and digits else digits}f}"


def short(value: float | None) -> str:
    """Format a count: 5.1M, 820k."""
    if value is None:
        return "–"
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def panel(title: str, body: str, wide: bool = False) -> str:
    """One framed part of a section."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="panel{" wide" if wide else ""}">{heading}{body}</div>'


def heat_map(evaluations: Mapping[str, Evaluation]) -> str:
    """P@1 of every language at every layer (mean of both directions), the checkpoints side by side, best first."""
    scores = {name: result["retrieval"] for name, result in evaluations.items() if result.get("retrieval")}
    languages = {language: of for table in scores.values() for language, of in table.items()}
    layers = _shown_layers(max(len(of["to_english"]) for of in languages.values()))
    ranking = list(scores.values())[-1]
    order = sorted(languages, key=lambda lang: -max(_both(ranking.get(lang, languages[lang]))))
    head = "".join(f'<th class="gap"></th><th colspan="{len(layers)}">{escape(name)}</th>' for name in scores)
    numbers = "".join('<th class="gap"></th>' + "".join(f"<th>{layer}</th>" for layer in layers) for _ in scores)
    tables = []
    for part in _halves(order):
        rows = "".join(
            f"<tr><td>{escape(lang)}</td>"
            + "".join('<td class="gap"></td>' + _heat_cells(table.get(lang), layers) for table in scores.values())
            + "</tr>"
            for lang in part
        )
        tables.append(
            panel(
                "",
                f'<table class="heat"><thead><tr><th></th>{head}</tr><tr><th>layer</th>{numbers}</tr>'
                f"</thead><tbody>{rows}</tbody></table>",
            )
        )
    return f'<div class="grid below">{"".join(tables)}</div>'


def _both(scores: LanguageRetrieval) -> list[float]:
    return [(a + b) / 2 for a, b in zip(scores["to_english"], scores["from_english"], strict=True)]


def _shown_layers(count: int) -> list[int]:
    if count <= SHOWN_LAYERS:
        return list(range(count))
    return [round(place * (count - 1) / (SHOWN_LAYERS - 1)) for place in range(SHOWN_LAYERS)]


def _heat_cells(scores: LanguageRetrieval | None, layers: Sequence[int]) -> str:
    if scores is None:
        return "<td></td>" * len(layers)
    means = _both(scores)
    cells = []
    for layer in layers:
        value = means[layer]
        tint = f"background:color-mix(in srgb,var(--heat) {100 * value:.0f}%,var(--soft))"
        ink = "var(--heat-ink)" if value > 0.8 else "var(--ink)"
        title = (
            f"layer {layer}: to English {scores['to_english'][layer]:.3f}, from English "
            f"{scores['from_english'][layer]:.3f}, {scores['candidates']} candidates"
        )
        few = "" if scores["counted"] else ' class="few"'
        cells.append(f'<td{few} style="{tint};color:{ink}" title="{escape(title)}">{100 * value:.0f}</td>')
    return "".join(cells)


def _halves(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Split into two columns if there are enough items."""
    middle = (len(items) + 1) // 2 if len(items) > 8 else len(items)
    return [part for part in (items[:middle], items[middle:]) if part]


def sampling_bars(phase: str, objective: str, record: Record) -> str:
    """Actual share of every language so far (bar) and its target share (line)."""
    realised = record.get("realised", {}).get(objective, {})
    # averaged like the actual mix; runs of the first version logged only the current target
    asked = (record.get("asked_so_far") or record.get("asked", {})).get(objective, {})
    total, colour = sum(realised.values()), objective_colours([record])[objective]
    shares = {name: realised.get(name, 0) / total if total else 0.0 for name in {**asked, **realised}}
    full = max([*shares.values(), *asked.values()], default=1.0) or 1.0
    bars = "".join(
        f'<div class="bar" title="{escape(name)}: realised {shares[name]:.4f}, asked {asked.get(name, 0):.4f}">'
        f'<span>{escape(name)}</span><span class="track"><span class="fill" '
        f'style="width:{100 * shares[name] / full:.1f}%;background:var(--{colour})"></span>'
        f'<span class="tick" style="left:{100 * asked.get(name, 0) / full:.1f}%"></span></span>'
        f'<span class="figure">{100 * shares[name]:.2f}%</span></div>'
        for name in sorted(shares, key=lambda name: (-asked.get(name, 0), name))
    )
    furthest = max((abs(shares[name] - asked.get(name, 0)) for name in shares), default=0.0)
    title = f"{phase}, {objective}: largest difference {100 * furthest:.2f} points"
    return panel(title, f'<div class="bars">{bars}</div>', wide=True)


def perplexity_tables(evaluations: Mapping[str, Evaluation], frequencies: Frequencies | None) -> str:
    """Perplexity of every language under every checkpoint, and under the table of word frequencies, if there is one.

    English and prose come first, then the others by the last checkpoint.
    """
    columns = {name: perplexities for name, result in evaluations.items() if (perplexities := _all_perplexities(result))}
    last = list(columns.values())[-1]
    if frequencies:
        columns["word frequencies"] = _all_perplexities(frequencies)
    rows = {row for column in columns.values() for row in column}
    order = sorted(rows, key=lambda row: (row != "en", "prose" not in row, last.get(row) or float("inf"), row))
    cells = [[row, *(number(column.get(row), 1) for column in columns.values())] for row in order]
    tables = "".join(panel("", table(["language", *columns], part)) for part in _halves(cells))
    return f'<div class="grid">{tables}</div>'


def _all_perplexities(result: Evaluation | Frequencies) -> dict[str, float | None]:
    prose = {f"{language} prose": value for language, value in result.get("prose_perplexity", {}).items()}
    return {**result.get("perplexity", {}), **prose}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table; the first column is text, the others are figures."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def fact_table(facts: Mapping[str, object], prefix: str = "") -> str:
    """A nested mapping as a two-column table with dotted names."""
    rows = "".join(
        f'<tr><td><code>{escape(name)}</code></td><td class="text">{escape(value)}</td></tr>'
        for name, value in _flat(facts, prefix)
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _flat(value: object, prefix: str) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        dot = f"{prefix}." if prefix else ""
        return [item for key, inner in value.items() for item in _flat(inner, f"{dot}{key}")]
    if isinstance(value, list | tuple):
        return [(prefix, " ".join(map(str, value)))]
    return [(prefix, value)]
