"""Charts of a study: one dot per run, one line per arm, colour by kind of arm, dashes by n1/N."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dist_metaxlm.reporting.plots import COLOURS, draw
from dist_metaxlm.reporting.results import ArmResult
from dist_metaxlm.reporting.style import CSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_COLOURS = {
    "meta+cross": "cross",
    "joint": "joint",
    "joint matched": "objective-3",
    "cross only": "objective-2",
    "meta only": "meta",
}
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = "os^D"

Results = Sequence[ArmResult]


def scatter(results: Results, horizontal: str, vertical: str, names: Mapping[str, str]) -> str:
    """One dot per run: two of its measures."""
    place = _by_ratio(results)

    def paint(axes: Axes) -> None:
        for label, runs in _by_label(results).items():
            points = [(run["figures"].get(horizontal), run["figures"].get(vertical)) for run in runs]
            known = [(x, y) for x, y in points if x is not None and y is not None]
            if known:
                axes.scatter(
                    [x for x, _ in known],
                    [y for _, y in known],
                    s=26,
                    label=label,
                    color=_colour(runs[0]),
                    alpha=0.85,
                    linewidths=0,
                    marker=_MARKERS[place[runs[0]["ratio"]] % len(_MARKERS)],
                )
        axes.set(xlabel=names[horizontal], ylabel=names[vertical])
        axes.grid(True, axis="both")
        _legend(axes)

    return draw(_identity(f"scatter-{horizontal}-{vertical}"), f"{names[vertical]} against {names[horizontal]}", paint)


def curve(results: Results, measure: str, name: str) -> str:
    """A measure over training tokens, mean over seeds, for each arm."""

    def paint(axes: Axes) -> None:
        _lines(axes, results, lambda run: {point["tokens"]: _value(point, measure) for point in run["curve"]})
        axes.xaxis.set_major_formatter(_tokens)
        axes.set(xlabel="tokens", ylabel=name)

    return draw(_identity(f"curve-{measure}"), f"{name} over training", paint)


def loss_curve(results: Results) -> str:
    """Training loss of the objective that all arms have, over tokens, mean over seeds, for each arm."""
    name = _shared_objective(results)

    def paint(axes: Axes) -> None:
        _lines(axes, results, lambda run: {point["tokens"]: point["losses"].get(name) for point in run["loss"]})
        axes.xaxis.set_major_formatter(_tokens)
        axes.set(xlabel="tokens", ylabel=f"{name} training loss (nats)")

    return draw("curve-loss", "Training loss", paint)


def _value(point: Mapping[str, object], measure: str) -> float | None:
    value = point.get(measure)
    return float(value) if isinstance(value, int | float) else None


def _shared_objective(results: Results) -> str:
    """The first objective whose loss every run has logged."""
    logged = [dict.fromkeys(name for point in run["loss"] for name in point["losses"]) for run in results]
    return next((name for name in (logged[0] if logged else {}) if all(name in names for names in logged)), "")


def by_layer(results: Results, figure: str, name: str) -> str:
    """A measure of the finished arms by layer, mean over seeds."""

    def paint(axes: Axes) -> None:
        _lines(axes, results, lambda run: dict(enumerate(run["final"]["by_layer"].get(figure, []))))
        axes.locator_params(axis="x", integer=True)
        axes.set(xlabel="layer (0: embedding)", ylabel=name)

    return draw(_identity(f"layers-{figure}"), f"{name} by layer", paint)


def standalone(svg: str) -> str:
    """A chart of the page as a standalone SVG file in the light colours."""
    light = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", CSS[: CSS.index("@media")]))
    svg = re.sub(r"var\(--([a-z]+)\)", lambda match: light[match[1]], svg)
    return (
        svg.replace(
            "<svg ",
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif" ',
            1,
        )
        + "\n"
    )


def _lines(axes: Axes, results: Results, points: Callable[[ArmResult], Mapping[int, float | None]]) -> None:
    place = _by_ratio(results)
    for label, runs in _by_label(results).items():
        courses = [points(run) for run in runs]
        at = sorted(set.intersection(*(set(course) for course in courses)))
        rows = [(x, [course[x] for course in courses]) for x in at]
        complete = [(x, [value for value in values if value is not None]) for x, values in rows if None not in values]
        means = [(x, sum(values) / len(values)) for x, values in complete]
        if means:
            axes.plot(
                *zip(*means, strict=True),
                label=label,
                color=_colour(runs[0]),
                linestyle=_DASHES[place[runs[0]["ratio"]] % len(_DASHES)],
                marker="o" if len(means) < 16 else None,
                markersize=3,
            )
    axes.margins(x=0.02)
    _legend(axes)


def _by_label(results: Results) -> dict[str, list[ArmResult]]:
    arms: dict[str, list[ArmResult]] = {}
    for run in results:
        arms.setdefault(run["label"], []).append(run)
    return arms


def _by_ratio(results: Results) -> dict[float | None, int]:
    ratios = sorted({run["ratio"] for run in results if run["ratio"] is not None})
    return {None: 0} | {ratio: place for place, ratio in enumerate(ratios)}


def _colour(run: ArmResult) -> str:
    return COLOURS[KIND_COLOURS.get(run["kind"], "other")]


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=3,
            borderpad=0,
            fontsize=8,
            handlelength=1.8,
            columnspacing=1.0,
            handletextpad=0.5,
        )


def _tokens(value: float, _: object) -> str:
    return f"{value / 1e9:g}B" if value >= 1e9 else f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"


def _identity(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())
