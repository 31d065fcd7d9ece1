"""Pictures of a plan as SVG files: a step by pipeline stage, a simulated run, and speed over cluster sizes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_metaxlm.planning.goodput.pipeline import one_forward_one_backward
from dist_metaxlm.planning.goodput.scale import Scaled
from dist_metaxlm.planning.goodput.simulation import Outcome
from dist_metaxlm.planning.speed.work import StepTime
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = 48
"""Micro-batches of a step that are drawn at most; with more, single passes would be thinner than a pixel."""
_COLOURS = {"training": "#2f6fb3", "slow": "#b9791a", "lost": "#c2562a", "restart": "#8a929c"}
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "dist_metaxlm", "axes.spines.top": False, "axes.spines.right": False}


def _write(path: Path, size: tuple[float, float], paint: Callable[[Any], None], rows: int = 1) -> Path:
    """Draw and write a picture, the same bytes for the same data."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(rows, 1, sharex=rows > 1)
        paint(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    write_text(path, stream.getvalue())
    return path


def draw_step(path: Path, time: StepTime, phase: str) -> Path:
    """The passes of a step on each stage, communication left out."""
    stages, count = time.stages, min(time.micro_batches, DRAWN)
    cut = "" if count == time.micro_batches else f" (the first {count} of {time.micro_batches:,} micro-batches)"

    def paint(axes: Axes) -> None:
        passes = one_forward_one_backward(stages, count)
        for backward, colour, label in ((False, "#6aa9e9", "forward"), (True, "#2f6fb3", "backward")):
            for stage in range(len(stages)):
                bars = [
                    (one.start * 1e3, (one.end - one.start) * 1e3)
                    for one in passes
                    if one.stage == stage and one.backward == backward
                ]
                name = label if stage == 0 else None
                axes.broken_barh(bars, (stage - 0.4, 0.8), facecolor=colour, edgecolor="white", linewidth=0.4, label=name)
        axes.set_yticks(range(len(stages)), [f"stage {stage}" for stage in range(len(stages))])
        axes.invert_yaxis()
        axes.set(xlabel="milliseconds", title=f"a step of {phase}: {pluralize(len(stages), 'stage')}{cut}")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)

    return _write(path, (9.0, 1.6 + 0.35 * len(stages)), paint)


def draw_run(path: Path, run: Outcome) -> Path:
    """The run of one seed: what the devices do, and the training that counts at its end."""

    def paint(both: Any) -> None:
        above, below = both
        for kind, colour in _COLOURS.items():
            bars = [(one.start / 86400, (one.end - one.start) / 86400) for one in run.segments if one.kind == kind]
            above.broken_barh(bars, (0, 1), facecolor=colour, label=kind)
        above.set_yticks([])
        above.set(title=f"a simulated run: goodput {run.goodput:.1%}, {pluralize(run.failures, 'failure')}")
        above.legend(loc="upper left", bbox_to_anchor=(1, 1.1), frameon=False)
        times, lost = _lost_over_time(run)
        below.plot(times, lost, color=_COLOURS["lost"])
        below.set(xlabel="days", ylabel="hours lost or\nin restarts", ylim=(0, None), xlim=(0, run.wall / 86400))

    return _write(path, (9.0, 3.4), paint, rows=2)


def _lost_over_time(run: Outcome) -> tuple[list[float], list[float]]:
    """Days, and the hours of lost training and restarts up to then."""
    times, hours = [0.0], [0.0]
    for one in sorted((one for one in run.segments if one.kind in ("lost", "restart")), key=lambda one: one.end):
        # Lost training is known as lost only at the failure, so it is a jump there.
        start = one.end if one.kind == "lost" else one.start
        times += [start / 86400, one.end / 86400]
        hours += [hours[-1], hours[-1] + (one.end - one.start) / 3600]
    return [*times, run.wall / 86400], [*hours, hours[-1]]


def draw_scale(path: Path, rows: Sequence[Scaled]) -> Path:
    """Tokens a second over devices, with the line of perfect scaling, and memory a device."""
    fitting = [row for row in rows if row.chosen is not None]

    def paint(both: Any) -> None:
        above, below = both
        devices = [row.devices for row in fitting]
        above.plot(devices, [row.tokens_per_second for row in fitting], "o-", color="#2f6fb3", label="predicted")
        if fitting:
            each = fitting[0].tokens_per_second / fitting[0].devices
            above.plot(devices, [each * count for count in devices], "--", color="#8a929c", label="perfect scaling")
            above.set(yscale="log")
        above.set(ylabel="tokens/s")
        above.legend(frameon=False)
        below.plot(devices, [row.memory / 1e9 for row in fitting], "o-", color="#c2562a")
        below.set(xlabel="devices", ylabel="GB a device", ylim=(0, None), xscale="log")
        below.set_xticks(devices, [f"{count:,}" for count in devices])
        below.minorticks_off()

    return _write(path, (7.0, 5.0), paint, rows=2)
