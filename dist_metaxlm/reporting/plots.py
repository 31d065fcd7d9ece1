"""Charts as inline SVG: drawn by matplotlib, coloured by the page's CSS variables, the same bytes for the same data.

matplotlib does not support CSS variables, so charts are drawn in placeholder colours that are replaced in the SVG; the
page sets them for light and dark mode. Text stays text and uses the font of the page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dist_metaxlm.reporting.metrics import keys_of, series
from dist_metaxlm.reporting.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OBJECTIVES = ("objective-1", "objective-2", "objective-3")
_NAMES = ("ink", "muted", "grid", "surface", "untrained", "meta", "cross", "joint", *_OBJECTIVES, "other")
COLOURS = {name: f"#0000{index:02x}" for index, name in enumerate(_NAMES, start=1)}
"""CSS variable -> its placeholder colour while drawing."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dist_metaxlm",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": COLOURS["grid"],
    "axes.labelcolor": COLOURS["muted"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.solid_capstyle": "round",
}
_SIZE = (4.5, 2.7)
LABEL_GAP = 1.06
"""Place of the labels of lines, in widths of the axes; between them and the lines' ends is room for leaders."""
HIGHLIGHTED = 5
"""Number of labelled lines in a chart of many languages."""


def objective_colours(records: Sequence[Record]) -> dict[str, str]:
    """Objective -> CSS variable, by its position among the objectives of a phase."""
    names = dict.fromkeys(
        name for place in ("realised", "losses", "language_losses") for name in keys_of(list(records), place)
    )
    return {name: _OBJECTIVES[place] if place < len(_OBJECTIVES) else "other" for place, name in enumerate(names)}


def draw(name: str, label: str, paint: Callable[[Axes], None]) -> str:
    """One chart as an `<svg>` element.

    Args:
        name: unique on the page; makes the ids inside the SVG unique.
        label: description of the chart for screen readers.
        paint: draws on the given axes.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        target = io.StringIO()
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None})
    return _for_page(target.getvalue(), name, label)


def _for_page(svg: str, name: str, label: str) -> str:
    """Strip what an inline SVG does not need, make its ids unique, replace placeholder colours by CSS variables."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    svg = re.sub(r"<svg[^>]*>", f'<svg role="img" aria-label="{html.escape(label)}" {view_box.group()}>', svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", svg)


def _line(axes: Axes, steps: Sequence[int], values: Sequence[float], **style: Any) -> None:
    """A line over steps; a single point, as for a phase that logged once, is a dot."""
    if len(values) == 1:
        style = {"marker": "o", "markersize": 4, **style}
    axes.plot(steps, values, **style)


def _step_axis(axes: Axes, label: str = "step") -> None:
    """Axis of steps with integer ticks, even for few steps."""
    low, high = axes.get_xlim()
    if high - low < 2:
        axes.set_xlim(round((low + high) / 2) - 1, round((low + high) / 2) + 1)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(label)


def loss_chart(phase: str, records: Sequence[Record]) -> str:
    """Loss over steps of a phase: each objective, and their weighted sum if there are several."""
    rows = list(records)
    objectives, colours = keys_of(rows, "losses"), objective_colours(rows)

    def paint(axes: Axes) -> None:
        if len(objectives) != 1:
            _line(axes, *series(rows, "loss"), color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (3, 2)), label="total")
        for name in objectives:
            _line(axes, *series(rows, "losses", name), color=COLOURS[colours[name]], label=name)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.set_ylabel("loss (nats)")
        _step_axis(axes)
        _legend_above(axes)

    return draw(f"loss-{phase}", f"Loss of phase {phase} over steps", paint)


def language_loss_chart(phase: str, objective: str, records: Sequence[Record]) -> str:
    """Loss of one objective for every language: all in grey; English, the extremes and the middle are labelled."""
    rows = list(records)
    lines = {name: series(rows, "language_losses", objective, name) for name in keys_of(rows, "language_losses", objective)}
    smooth = {name: (steps, _running_mean(values)) for name, (steps, values) in lines.items() if values}

    def paint(axes: Axes) -> None:
        _language_lines(axes, smooth, COLOURS[objective_colours(rows)[objective]])
        axes.set_ylabel(f"{objective} loss (nats)")

    return draw(f"languages-{phase}-{objective}", f"{objective} loss of phase {phase} by language", paint)


def probe_chart(phase: str, records: Sequence[Record]) -> str:
    """Retrieval measured during a phase: every language, and their mean in the colour of the phase."""
    rows = list(records)
    lines = {name: series(rows, "probe", "languages", name) for name in keys_of(rows, "probe", "languages")}
    several = len(lines) > 1

    def paint(axes: Axes) -> None:
        _language_lines(axes, {name: line for name, line in lines.items() if line[1]}, COLOURS["other"], from_zero=True)
        if several:
            _line(
                axes,
                *series(rows, "probe", "retrieval"),
                color=COLOURS.get(phase, COLOURS["other"]),
                linewidth=2.4,
                zorder=4,
                label="mean",
            )
            _legend_above(axes)
        axes.set_ylabel("P@1")

    return draw(f"probe-{phase}", f"Retrieval while phase {phase} trained", paint)


def heldout_chart(phase: str, records: Sequence[Record]) -> str:
    """Held-out bits per byte: every language, their mean in the colour of the phase, word frequencies as a dashed line."""
    rows = list(records)
    lines = {name: series(rows, "heldout", "languages", name) for name in keys_of(rows, "heldout", "languages")}
    level = series(rows, "heldout", "word_frequencies")[1]

    def paint(axes: Axes) -> None:
        shown = {name: line for name, line in lines.items() if line[1]}
        _language_lines(axes, shown, COLOURS["other"], from_zero=True, level=level[-1] if level else 0.0)
        colour = COLOURS.get(phase, COLOURS["other"])
        _line(
            axes, *series(rows, "heldout", "bits_per_byte"), color=colour, linewidth=2.4, zorder=4, label="mean of the phase"
        )
        if level:
            axes.axhline(level[-1], color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (3, 2)), label="word frequencies")
        axes.set_ylabel("bits per byte")
        _legend_above(axes)

    return draw(f"heldout-{phase}", f"Held-out bits per byte while phase {phase} trained", paint)


def _language_lines(
    axes: Axes,
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    colour: str,
    from_zero: bool = False,
    level: float = 0.0,
) -> None:
    """A line for every language: all in grey except English, the extremes and the middle, which are labelled.

    The vertical axis is final before the labels are placed: `from_zero` and a horizontal line at `level` are part of it.
    """
    named = _worth_naming({name: values[-1] for name, (_, values) in lines.items()})
    for name, (steps, values) in lines.items():
        bold = name in named
        _line(
            axes,
            steps,
            values,
            color=colour if bold else COLOURS["muted"],
            linewidth=1.5 if bold else 0.6,
            alpha=1.0 if bold else 0.45,
            zorder=3 if bold else 2,
        )
    axes.margins(x=0.01)
    _step_axis(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(0 if from_zero else low, max(high, 1.05 * level))
    _name_ends(axes, {name: lines[name] for name in named})


def layer_chart(per_layer: Mapping[str, Sequence[float]]) -> str:
    """Mean P@1 over layers for every evaluated checkpoint, with the value at the best layer of the trained ones."""

    def paint(axes: Axes) -> None:
        bests: list[tuple[int, float, str]] = []
        for name, values in per_layer.items():
            best = max(range(len(values)), key=values.__getitem__)
            axes.plot(
                range(len(values)), values, color=COLOURS.get(name, COLOURS["other"]), marker="o", markersize=3.5, label=name
            )
            if name != "untrained":
                bests.append((best, values[best], name))
        highest = max((max(values) for values in per_layer.values()), default=1.0)
        axes.set_ylim(0, min(1.08, highest * 1.25 + 0.02))
        _best_figures(axes, bests, max(map(len, per_layer.values()), default=1))
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel="layer (0: embedding)", ylabel="mean P@1")
        _legend_above(axes)

    return draw("layers", "Mean retrieval P@1 by layer", paint)


def _best_figures(axes: Axes, bests: Sequence[tuple[int, float, str]], layers: int) -> None:
    """The best value of each curve above its point, above other labels if these are near, on the background of the page."""
    gap = 0.085 * axes.get_ylim()[1]
    placed: list[tuple[int, float]] = []
    for layer, value, name in sorted(bests, key=lambda best: best[1]):
        at = value + 0.6 * gap
        for other, height in placed:
            if abs(other - layer) < 0.14 * layers and at < height + gap:
                at = height + gap
        placed.append((layer, at))
        axes.annotate(
            f"{value:.2f}",
            (layer, at),
            ha="center",
            va="center",
            fontsize=9.5,
            zorder=5,
            color=COLOURS.get(name, COLOURS["other"]),
            bbox={"facecolor": COLOURS["surface"], "edgecolor": "none", "pad": 0.6},
        )


def throughput_chart(metrics: Mapping[str, Sequence[Record]]) -> str:
    """Tokens a second over the steps of every phase."""

    def paint(axes: Axes) -> None:
        for phase, records in metrics.items():
            steps, speeds = series(list(records), "tokens_per_second")
            _line(axes, steps, speeds, color=COLOURS.get(phase, COLOURS["other"]), label=phase)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        axes.set_ylabel("tokens/s")
        _step_axis(axes, "step of the phase")
        _legend_above(axes)

    return draw("throughput", "Tokens a second over the steps of every phase", paint)


def _legend_above(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=len(handles),
            borderpad=0,
            handlelength=1.2,
            columnspacing=1.2,
            handletextpad=0.5,
        )


def _running_mean(values: Sequence[float], width: int = 5) -> list[float]:
    """Mean over the last `width` values: a language has few targets in one interval."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def _worth_naming(final: Mapping[str, float]) -> list[str]:
    """English, the highest, the lowest and the middle ones: `HIGHLIGHTED` names, highest first."""
    ranked = sorted(final, key=lambda name: -final[name])
    if len(ranked) <= HIGHLIGHTED:
        return ranked
    last = len(ranked) - 1
    places = [round(last * share / (HIGHLIGHTED - 1)) for share in range(HIGHLIGHTED)]
    chosen = {ranked[place] for place in places}
    if "en" in final and "en" not in chosen:
        chosen.remove(ranked[places[HIGHLIGHTED // 2]])
        chosen.add("en")
    return [name for name in ranked if name in chosen]


def _name_ends(axes: Axes, lines: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """Label each line at its end; labels are moved apart so that none overlap, and a thin line leads to each line's end."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.085
    ends = sorted(((values[-1], steps[-1], name) for name, (steps, values) in lines.items()), reverse=True)
    heights: list[float] = []
    for value, *_ in ends:  # downwards, each below the previous one
        heights.append(min(value, heights[-1] - gap if heights else high))
    floor = low
    for place in reversed(range(len(heights))):  # upwards again, for those moved below the bottom
        heights[place] = max(heights[place], floor)
        floor = heights[place] + gap
    leader = {"arrowstyle": "-", "color": COLOURS["muted"], "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
    for at, (value, step, name) in zip(heights, ends, strict=True):
        axes.annotate(
            name,
            (step, value),
            xytext=(LABEL_GAP, at),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9.5,
            annotation_clip=False,
            arrowprops=leader,
        )
