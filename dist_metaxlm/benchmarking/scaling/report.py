"""A scaling measurement as a Markdown table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dist_metaxlm.benchmarking.scaling.scaling import KINDS, Row, Scaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(result: Scaling) -> str:
    """The rows as a Markdown table; for nodes also the traffic between them."""
    nodes = result["unit"] == "nodes"
    heads = [
        "scaling",
        "over",
        *(["nodes"] if nodes else []),
        "ranks",
        "tokens a step",
        "s a step",
        "tokens/s",
        "speed-up",
        "efficiency",
        "in communication",
        *(_TRAFFIC if nodes else []),
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in result["rows"]:
        cells = [
            row["scaling"],
            row["kind"],
            *([str(row["nodes"])] if nodes else []),
            str(row["ranks"]),
            f"{row['tokens_per_step']:,}",
            f"{row['seconds_per_step']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speed_up']:.2f}",
            f"{row['efficiency']:.0%}",
            f"{row['communication_seconds']:.3f} s ({row['communication_share']:.0%})"
            if nodes
            else f"{row['communication_share']:.0%}",
            *(_traffic(row, result["link_megabits"]) if nodes else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_TRAFFIC = ["MB sent a step", "predicted", "MB of the busiest node", "predicted", "s on the link, at least"]


def _traffic(row: Row, megabits: float | None) -> list[str]:
    if row["nodes"] == 1:
        return ["-"] * len(_TRAFFIC)
    sent = [
        f"{count / 1e6:.2f}"
        for count in (
            row["sent_bytes"],
            row["predicted_bytes"],
            row["sent_bytes_of_busiest_node"],
            row["predicted_bytes_of_busiest_node"],
        )
    ]
    least = row["predicted_bytes_of_busiest_node"] * 8 / 1e6
    return [*sent, "-" if megabits is None else f"{least / megabits:.3f}"]


def plot(result: Scaling, path: Path) -> None:
    """Speed-up over ranks or nodes, one line per kind; solid lines for strong, dashed for weak scaling.

    Dotted: ideal scaling, linear for ranks on separate devices, constant on shared cores.
    """
    draw({"": result}, path)


def draw(results: Mapping[str, Scaling], path: Path) -> None:
    """One panel per result, titled by its name, such as the bandwidth of the link."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(results), 4), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        _panel(axes, result, name)
    figure.savefig(path)


def _panel(axes: Axes, result: Scaling, name: str) -> None:
    unit, environment = result["unit"], result["environment"]
    counts = sorted({row[unit] for row in result["rows"]})
    ideal = [count / counts[0] for count in counts] if environment["devices"] else [1] * len(counts)
    axes.plot(counts, ideal, ":", color="grey", label="free of cost")
    for number, kind in enumerate(KINDS):
        for scaling, line in (("strong", "-"), ("weak", "--")):
            points = [
                (row[unit], row["speed_up"]) for row in result["rows"] if (row["scaling"], row["kind"]) == (scaling, kind)
            ]
            if points:
                axes.plot(
                    *zip((counts[0], 1.0), *points, strict=True),
                    line,
                    marker="o",
                    color=f"C{number}",
                    label=f"{kind}, {scaling}",
                )
    title = f"{result['recipe']}, {environment['device']}, {environment['cpu_cores']} cores"
    axes.set(
        xlabel=unit,
        ylabel=f"tokens/s against one {unit[:-1]}",
        xticks=counts,
        ylim=0,
        title=f"{title}, {name}" if name else title,
    )
    axes.title.set_fontsize(9)
    axes.legend(fontsize=8)
