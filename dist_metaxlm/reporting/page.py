"""Report of a run as one self-contained HTML file: no external scripts, fonts or images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dist_metaxlm.reporting import plots
from dist_metaxlm.reporting.fill_mask import accuracy_table, example_panels
from dist_metaxlm.reporting.metrics import UNTRAINED, keys_of, outcome_order
from dist_metaxlm.reporting.sections import (
    escape,
    fact_table,
    heat_map,
    number,
    panel,
    perplexity_tables,
    sampling_bars,
    short,
    table,
)
from dist_metaxlm.reporting.style import CSS
from dist_metaxlm.reporting.summary import PhaseSummary, RunFiles, Summary, build_summary, read_run
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.text import pluralize

SECTIONS = ("retrieval", "losses", "perplexity", "fill-mask", "sampling", "throughput", "setting")
"""Ids of the sections of a complete run, in the order of the page."""


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` in the run's folder from what the run has written so far, and return its path.

    Raises:
        UserError: the folder holds no run, or one of its files is not JSON.
    """
    path = Path(run_dir) / "report.html"
    write_text(path, render(read_run(run_dir), build_summary(run_dir)))
    return path


def render(run: RunFiles, summary: Summary) -> str:
    """The page as text; the same run gives the same bytes."""
    name = escape(run.recipe.get("name", run.folder.name))
    parts = [
        _header(run, summary),
        _cards(summary),
        _retrieval(run, summary),
        _losses(run),
        _perplexity(run),
        _fill_mask(run, summary),
        _sampling(run),
        _throughput(run, summary),
        _setting(run),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} – dist_metaxlm</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _section(identity: str, title: str, note: str, body: str) -> str:
    return f'<section id="{identity}"><h2>{title}</h2><p class="note">{note}</p>{body}</section>'


def _header(run: RunFiles, summary: Summary) -> str:
    model = run.recipe.get("model", {})
    shape = f"{model.get('family', '')} {model.get('layers', '?')} × {model.get('hidden', '?')}"
    # joint starts from scratch: it does not follow the others
    phases = [" → ".join(phase for phase in run.metrics if phase != "joint"), *(["joint"] if "joint" in run.metrics else [])]
    facts = [", ".join(filter(None, phases)) or "no phase run yet", shape, f"vocabulary {model.get('vocab_size', 0):,}"]
    if summary["parameters"]:
        facts.insert(1, f"{short(summary['parameters'])} parameters")
    return (
        f"<header><h1>{escape(run.recipe.get('name', run.folder.name))}</h1>"
        f'<p class="facts">{escape(" · ".join(facts))}</p>{_place(run)}{_lead(summary)}{_standing(summary)}</header>'
    )


def _place(run: RunFiles) -> str:
    """When, where and from which commit the run was made; empty if it has no record of that."""
    about = run.environment
    date = str(about.get("date", ""))[:16].replace("T", " ")
    cores = f", {pluralize(about['cpu_cores'], 'core')}" if about.get("cpu_cores") and not about.get("devices") else ""
    device = f"{about['device']}{cores}" if about.get("device") else ""
    commit = f"commit {about['commit']}" if about.get("commit") else ""
    facts = [f"{date} UTC" if date else "", str(about.get("host") or ""), device, commit]
    shown = " · ".join(fact for fact in facts if fact)
    return f'<p class="facts">{escape(shown)}</p>' if shown else ""


def _lead(summary: Summary) -> str:
    """The outcome in one sentence."""
    scored = {name: p for name, e in summary["evaluation"].items() if (p := e.get("mean_p_at_1")) is not None}
    last = _outcome(summary, scored)
    if last is None:
        return ""
    after = summary["evaluation"][last]
    text = (
        f"After phase {last}, a held-out sentence finds its translation among {after['candidates_min']} or more "
        f"candidates {100 * scored[last]:.0f}% of the time, on average over "
        f"{pluralize(after['languages'], 'language')} and both directions (layer {after['best_layer']})"
    )
    earlier = (("untrained", "untrained"), *([("meta", "after phase meta")] if last == "cross" else []))
    before = [
        f"{words}{' it was' * (not number)} {100 * scored[name]:.0f}%"
        for number, (name, words) in enumerate(pair for pair in earlier if pair[0] in scored)
    ]
    if before:
        text += f"; {', '.join(before)}"
    return f'<p class="lead">{escape(text)}.</p>'


def _outcome(summary: Summary, known: Mapping[str, object]) -> str | None:
    """The phase that shows the outcome of the run, among those with a result in `known`."""
    phases = dict.fromkeys([*summary["phases"], *(name for name in known if "@" not in name and name != UNTRAINED)])
    return next((name for name in outcome_order(phases) if name in known), None)


def _standing(summary: Summary) -> str:
    """Whether each phase is better than what needs no training."""
    sentences = [of["sentence"] for of in summary["standing"].values() if of["sentence"]]
    return "".join(f'<p class="note">{escape(sentence)}.</p>' for sentence in sentences)


def _cards(summary: Summary) -> str:
    evaluation, phases = summary["evaluation"], summary["phases"]
    last = _outcome(summary, evaluation)
    cards = []
    shown: tuple[tuple[Literal["mean_p_at_1", "english_perplexity", "other_perplexity"], str, int], ...] = (
        ("mean_p_at_1", "retrieval P@1", 2),
        ("english_perplexity", "perplexity, English", 1),
        ("other_perplexity", "perplexity, others", 1),
    )
    for name, label, digits in shown:
        if last and evaluation[last].get(name) is not None:
            course = [
                f"{number(e[name], digits if digits > 1 else 0)} {phase}"
                for phase, e in evaluation.items()
                if e.get(name) is not None and phase != last
            ]
            cards.append(
                (label, number(evaluation[last][name], digits), f"after {last}{'; ' * bool(course)}{', '.join(course)}")
            )
    for phase, figures in phases.items():
        cards.append((f"loss, {phase}", number(figures["final_loss"]), _course(figures)))
    tokens = sum(figures["tokens"] or 0 for figures in phases.values())
    seconds = sum(figures["seconds"] or 0 for figures in phases.values())
    if tokens:
        cards.append(("tokens", short(tokens), f"in {_time(seconds)}" if seconds else ""))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
            f'<div class="aside">{escape(aside)}</div></div>'
            for label, value, aside in cards
        )
        + "</div>"
    )


def _course(figures: PhaseSummary) -> str:
    """First loss of a phase, the terms of its final loss, and what its guards have done."""
    parts = [f"from {number(figures['first_loss'])}"] if figures["first_loss"] != figures["final_loss"] else []
    final = figures["final_losses"]
    if len(final) > 1:
        parts.append(", ".join(f"{name} {number(value)}" for name, value in final.items()))
    parts += [f"{name} {count}" for name, count in figures.get("guards", {}).items() if count]
    return "; ".join(parts)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"


def _losses(run: RunFiles) -> str:
    panels = [panel(f"Phase {phase}", plots.loss_chart(phase, records)) for phase, records in run.metrics.items()]
    for phase, records in run.metrics.items():
        for objective in keys_of(records, "language_losses"):
            if len(keys_of(records, "language_losses", objective)) > 1:
                panels.append(
                    panel(f"Phase {phase}, {objective} by language", plots.language_loss_chart(phase, objective, records))
                )
    measured = {phase: records for phase, records in run.metrics.items() if keys_of(records, "heldout", "languages")}
    panels += [panel(f"Phase {phase}, held-out text", plots.heldout_chart(phase, of)) for phase, of in measured.items()]
    note = (
        "Training loss; the total weighs its objectives. By language: the mean over the last five logged lines; the "
        "highest, the lowest, the middle ones and English carry their names, all others are grey."
    )
    if measured:
        note += (
            " Held-out text: bits per byte of masked tokens, by language and as the mean over the phase's languages. "
            "Dashed: a table of word frequencies of the phase's training text on the same tokens; a run at that line has "
            "learnt nothing else."
        )
    return _section("losses", "Losses", note, f'<div class="grid">{"".join(panels)}</div>' if panels else "")


def _sampling(run: RunFiles) -> str:
    panels = [
        sampling_bars(phase, objective, records[-1])
        for phase, records in run.metrics.items()
        for objective in records[-1].get("realised", {})
    ]
    note = "What each phase has read, by language or pair. Bar: the share realised. Line: the share asked for."
    return _section("sampling", "Sampling", note, f'<div class="grid">{"".join(panels)}</div>')


def _retrieval(run: RunFiles, summary: Summary) -> str:
    per_layer = {name: e["per_layer_mean"] for name, e in run.evaluations.items() if e.get("per_layer_mean")}
    compared = {name: e for name, e in run.evaluations.items() if name != "untrained" and e.get("retrieval")}
    probes = _probes(run, summary)
    note = (
        "Share of held-out sentences whose nearest neighbour by cosine, among the sentences of the other language, "
        "is their translation. Vectors are means over all tokens of the sentence. Duplicates and untranslated "
        "strings are left out."
    )
    if not compared:
        return _section("retrieval", "Retrieval", note + " Not evaluated yet.", probes)
    chart = panel("Mean over languages and both directions", plots.layer_chart(per_layer)) if per_layer else ""
    scored = {name: e for name, e in summary["evaluation"].items() if e.get("mean_p_at_1") is not None}
    rows = [
        [name, number(e["mean_p_at_1"], 3), str(e["best_layer"]), str(e["languages"]), str(e["candidates_min"])]
        for name, e in scored.items()
    ]
    rows += [
        [name, number(e["mean_p_at_1"], 3), "–", "–", "–"]
        for name, e in summary["baselines"].items()
        if rows and e.get("mean_p_at_1") is not None
    ]
    if rows:
        chart += panel(
            "Best layer, and the least candidates of a language",
            table(["after", "P@1", "layer", "languages", "candidates"], rows),
        )
    heading = (
        '<p class="note below">By language and layer, per cent, mean of both directions; best languages of the '
        "last checkpoint first. Pale: too few candidates to count in the mean. Hover for both directions.</p>"
    )
    return _section("retrieval", "Retrieval", note, f'<div class="grid">{chart}</div>{heading}{heat_map(compared)}{probes}')


def _probes(run: RunFiles, summary: Summary) -> str:
    """Retrieval during the probed phases, and the cost of the probes."""
    probed = {phase: records for phase, records in run.metrics.items() if keys_of(records, "probe", "languages")}
    if not probed:
        return ""
    charts = "".join(panel(f"Phase {phase}", plots.probe_chart(phase, records)) for phase, records in probed.items())
    last = next(record["probe"] for record in reversed(list(probed.values())[-1]) if "probe" in record)
    cost = ", ".join(f"{100 * (summary['phases'][phase]['probe_share'] or 0):.1f}% of {phase}" for phase in probed)
    return (
        f'<p class="note below">While training: P@1 among at most {pluralize(last["strings"], "string")} of a language at '
        f"layer {last['layer']}. Cost of the probes: {cost}.</p>"
        f'<div class="grid below">{charts}</div>'
    )


def _perplexity(run: RunFiles) -> str:
    note = (
        "Masked-token perplexity of held-out text: 15% of the tokens hidden, the same ones for every checkpoint. "
        "Compare along a row; between languages the figure depends on how finely the tokenizer cuts each."
    )
    if not any(e.get("perplexity") or e.get("prose_perplexity") for e in run.evaluations.values()):
        return _section("perplexity", "Perplexity", note + " Not evaluated yet.", "")
    return _section("perplexity", "Perplexity", note, perplexity_tables(run.evaluations, run.baselines.get("frequencies")))


def _fill_mask(run: RunFiles, summary: Summary) -> str:
    accuracy = accuracy_table({**summary["evaluation"], **summary["baselines"]})
    results = [e["fill_mask"] for name, e in run.evaluations.items() if name != "untrained" and e.get("fill_mask")]
    body = accuracy + (example_panels(results[-1]["examples"]) if results else "")
    note = []
    if accuracy:
        note.append(
            "A whole word of one token is hidden in each held-out text, and the model guesses it; word frequencies: always "
            "the most frequent words of the language. Examples of the last checkpoint: texts of 25 to 160 characters with "
            "the highest probability of the hidden word, each with another word, and two random ones."
        )
    if run.fill_mask:
        note.append(
            "Last: the exported model, opened with transformers." if body else "The exported model fills a hidden token."
        )
        body += example_panels(run.fill_mask)
    return _section("fill-mask", "Filling a mask", " ".join(note), body) if body else ""


def _throughput(run: RunFiles, summary: Summary) -> str:
    if not run.metrics:
        return ""
    rows = [
        [
            phase,
            f"{of['steps']:,}",
            short(of["tokens"]),
            number((of["seconds"] or 0) / 60, 1),
            number(of["tokens_per_second"]),
        ]
        for phase, of in summary["phases"].items()
    ]
    body = panel("", plots.throughput_chart(run.metrics)) + panel(
        "By phase", table(["phase", "steps", "tokens", "minutes", "tokens/s"], rows)
    )
    note = "Tokens a second over all ranks: as logged, and for each phase as a whole."
    return _section("throughput", "Speed", note, f'<div class="grid">{body}</div>')


def _setting(run: RunFiles) -> str:
    recipe = f"<details><summary>Recipe</summary><pre>{escape(run.recipe_text)}</pre></details>"
    environment = (
        f"<details><summary>Environment</summary>{fact_table(run.environment)}</details>" if run.environment else ""
    )
    return _section("setting", "How it was made", "Every setting of the run, and where it ran.", recipe + environment)
