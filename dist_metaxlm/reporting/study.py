"""Report of a study as one HTML file and as Markdown with separate charts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dist_metaxlm.reporting import study_plots as plots
from dist_metaxlm.reporting.results import ArmResult, Interval, Study
from dist_metaxlm.reporting.sections import escape, fact_table, panel, short, table
from dist_metaxlm.reporting.style import CSS
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.text import pluralize

_LIMITS = (
    "Intervals are Student's t over the seeds, 95%; differences are taken seed by seed. Only the primary outcomes, declared "
    "before the study, are corrected for their number (Holm) and enter the verdict; all other comparisons are description: "
    "of twenty without any effect about one counts as a difference. The figures hold for this "
    "model, text and number of tokens, and for no other. The hyper-parameters are ours: the body of arXiv 2109.11129 was "
    "not available."
)
_ARMS = (
    "meta+cross: English for n1 tokens, then all languages for N - n1. joint: all languages for N. joint matched: one phase "
    "with the amounts of English, other languages and translations that meta+cross sees. cross only: all languages for "
    "N - n1. meta only: English for N. joint+joint: all languages with the restart of meta+cross. reversed: all languages "
    "for N - n1, then English. meta+cross replay: with the overall English share in the second phase. meta+cross clm: the "
    "first phase predicts next tokens. The number behind an arm is n1/N."
)


def write_study_report(folder: Path, study: Study) -> Path:
    """Write report.html, report.md and charts/*.svg in the study's folder from finished arms; returns the page's path."""
    charts = _charts(study)
    for name, (_, svg) in charts.items():
        write_text(folder / "charts" / f"{name}.svg", plots.standalone(svg))
    write_text(folder / "report.md", markdown(study, {name: title for name, (title, _) in charts.items()}))
    page = folder / "report.html"
    write_text(page, html(study, dict(charts.values())))
    return page


def html(study: Study, charts: Mapping[str, str]) -> str:
    """The page as text; the same study gives the same bytes."""
    parts = [
        f'<header><h1>Two phases or one: {escape(study["size"])}</h1><p class="facts">{escape(_facts(study))}</p>'
        f'<p class="lead">{escape(study["verdict"])}</p></header>'
    ]
    for title, note, head, rows in _tables(study):
        parts.append(
            f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
            f"{panel('', table(head, rows), wide=True)}</section>"
        )
    drawn = "".join(panel(title, svg) for title, svg in charts.items())
    parts.append(
        f'<section><h2>Charts</h2><p class="note">Lines are means over seeds.</p><div class="grid">{drawn}</div></section>'
    )
    parts.append(
        f'<section><h2>How it was made</h2><p class="note">{escape(_LIMITS)}</p>'
        f"<details><summary>Environment</summary>{fact_table(study['environment'])}</details></section>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Two-phase study, {escape(study['size'])} – dist_metaxlm</title><style>{CSS}</style></head>\n"
        "<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def markdown(study: Study, charts: Mapping[str, str]) -> str:
    """The same as Markdown; `charts` are file names in charts/ and their titles."""
    parts = [f"# Two phases or one: {study['size']}", _facts(study), f"**{study['verdict']}**"]
    for title, note, head, rows in _tables(study):
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        parts += [f"## {title}", note, "\n".join(lines)]
    parts += ["## Charts", "\n".join(f"![{title}](charts/{name}.svg)" for name, title in charts.items()), _LIMITS]
    parts.append(f"Command: `{' '.join(map(str, study['environment'].get('command', [])))}`")
    return "\n\n".join(parts) + "\n"


def interval_text(figure: Interval | None, sign: bool = False) -> str:
    """`1.234 ± 0.056`; without the second part for a single value, a dash for None."""
    if figure is None or figure["mean"] is None:
        return "–"
    width = figure["half_width"]
    return f"{figure['mean']:{'+' if sign else ''}.3f}" + (f" ± {width:.3f}" if width is not None else "")


def _facts(study: Study) -> str:
    state = "" if study["finished"] == study["asked"] else f", {study['finished']} of {study['asked']} runs finished"
    seconds = sum(result["seconds"] for result in study["results"])
    return (
        f"{short(study['parameters'])} parameters, N = {short(study['tokens'])} tokens, n1/N = "
        f"{', '.join(f'{ratio:g}' for ratio in study['ratios'])}, {pluralize(len(study['seeds']), 'seed')}{state}; "
        f"training took {pluralize(round(seconds / 60), 'minute')} on {study['environment'].get('device', '?')}"
    )


def _tables(study: Study) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """(title, note, head, rows) of the report's tables."""
    measures = study["measures"]
    names = list(measures)
    runs = {label: [run for run in study["results"] if run["label"] == label] for label in study["arms"]}
    arms = [
        [
            label,
            short(runs[label][0]["tokens"]),
            _share(runs[label]),
            str(len(runs[label])),
            _rates(runs[label]),
            *(interval_text(of.get(name)) for name in names),
        ]
        for label, of in study["arms"].items()
    ]
    arms += [[label, "–", "–", "–", "–", *(of.get(name, "–") for name in names)] for label, of in _baselines(study).items()]
    meanings = "; ".join(
        f"{name}: {of['meaning']}, {'higher' if of['higher_is_better'] else 'lower'} is better"
        for name, of in measures.items()
    )
    compared = [
        [f"{item['ratio']:g}", item["control"], item["measure"], interval_text(item["difference"], True), item["verdict"]]
        for item in study["comparisons"]
    ]
    note = (
        f"{_ARMS} Mean over seeds ± half the 95% interval. English: share of the mlm windows that were read. {meanings}"
        "; all but English are means over the other languages."
    )
    return [
        ("Arms", note, ["arm", "tokens", "English", "seeds", "rate × steps", *names], arms),
        *_gate(study),
        *_primary(study),
        (
            "Differences",
            "meta+cross minus the arm it is compared with; better and worse where the interval over seeds leaves out zero "
            "and, of primary outcomes, the corrected p is below 0.05.",
            ["n1/N", "against", "measure", "difference", "two phases are"],
            compared,
        ),
    ]


def _rates(runs: list[ArmResult]) -> str:
    """Sum of learning rate x steps of an arm; its seeds have the same."""
    known = [value for run in runs if (value := run.get("learning_rate_sum")) is not None]
    return f"{known[0]:.3f}" if known else "–"


def _ends(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def _baselines(study: Study) -> dict[str, dict[str, str]]:
    """Row -> measure -> figure of what needs no training."""
    baselines = study.get("baselines")
    if baselines is None:
        return {}
    names = dict.fromkeys(name for of in baselines["untrained"].values() for name in of)
    untrained = {
        name: " ".join(f"{value:.3f}" for of in baselines["untrained"].values() if (value := of[name]) is not None)
        for name in names
    }
    frequencies = {name: f"{value:.3f}" for name, value in baselines["frequencies"].items() if value is not None}
    rows = {"untrained (a figure a seed)": untrained, "word frequencies": frequencies}
    for label, value in (("token overlap", baselines["overlap"]), ("chance (mean of 1/N)", baselines["chance"])):
        rows[label] = {} if value is None else {"retrieval": f"{value:.4f}"}
    return rows


def _gate(study: Study) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """The table of the gate, once a single-phase arm is finished."""
    gate = study.get("gate")
    if gate is None:
        return []
    rows = [
        [
            check["measure"],
            _figure(check["value"]),
            check["baseline"],
            _figure(check["bar"]),
            "yes" if check["passed"] else "no",
        ]
        for check in gate["checks"]
    ]
    note = f"Without all of these there is no verdict. The best single-phase arm is {gate['arm']}."
    return [("Gate", note, ["measure", "arm", "baseline", "to pass", "passed"], rows)]


def _primary(study: Study) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """The table of the outcomes that were declared before the study."""
    rows = [
        [
            f"{item['ratio']:g}",
            item["control"],
            item["measure"],
            interval_text(item["difference"], True),
            _ends(item.get("bootstrap")),
            "–" if item.get("p_holm") is None else f"{item['p_holm']:.3f}",
        ]
        for item in study["comparisons"]
        if item.get("primary")
    ]
    note = (
        "Declared before the study began; the verdict counts these. Difference: mean over seeds. Resampled: 95% interval "
        "over seeds, items and languages, of measures with outcomes of every string. p: corrected by Holm's method."
    )
    head = ["n1/N", "against", "measure", "difference", "resampled", "p (Holm)"]
    return [("Primary outcomes", note, head, rows)] if rows else []


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(runs: list[ArmResult]) -> str:
    known = [run["english_share"] for run in runs if run["english_share"] is not None]
    return f"{100 * sum(known) / len(known):.1f}%" if known else "–"


def _charts(study: Study) -> dict[str, tuple[str, str]]:
    """File name -> (title, SVG of the page)."""
    results = study["results"]
    names = {name: of["meaning"] for name, of in study["measures"].items()}
    charts = {
        "english-retrieval": (
            "English against retrieval, a dot a run",
            plots.scatter(results, "english_nll", "retrieval", names),
        ),
        "english-others": (
            "English against the other languages, a dot a run",
            plots.scatter(results, "english_nll", "others_nll", names),
        ),
    }
    for task in dict.fromkeys(name.split(":")[0] for name in names if name.endswith(":English")):
        charts[f"task-{task}"] = (
            f"{task}: English against the others",
            plots.scatter(results, f"{task}:English", f"{task}:others", names),
        )
    for name in ("retrieval", "english_nll", "others_nll", "cka"):
        charts[f"curve-{name}"] = (f"Over training: {names[name]}", plots.curve(results, name, names[name]))
    charts["curve-loss"] = ("Training loss", plots.loss_curve(results))
    for figure, title in (("retrieval", "retrieval P@1"), ("cka", "CKA"), ("margin", "cosine, translations minus random")):
        charts[f"layers-{figure}"] = (f"Alignment by layer: {title}", plots.by_layer(results, figure, title))
    return charts
