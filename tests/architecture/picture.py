"""A picture of packages and layers, drawn from the imports in the code."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from import_graph import ImportGraph, package_arrows, package_of

BOX = (1.75, 0.5)
"""Width and height of a package."""
STEP = (2.1, 1.15)
"""From one box to the next, and from one layer to the next."""


def draw(graph: ImportGraph, layers: Mapping[str, int], output: Path) -> None:
    """Write an SVG with a row a layer (the highest on top), a box a package and an arrow from importer to imported.

    An arrow that follows from others (a -> c beside a -> b -> c) is left out. Packages without a layer are left out too.

    Raises:
        ValueError: no package of the graph has a layer.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    counts = Counter(package_of(name, 2).rpartition(".")[2] for name in graph.files)
    names = [name for name in layers if counts[name]]
    if not names:
        raise ValueError("no package has a layer: LAYERS in tests/test_architecture.py names none of this tree")
    arrows = {(a.rpartition(".")[2], b.rpartition(".")[2]) for a, b in package_arrows(graph, depth=2)}
    arrows = reduced({ends for ends in arrows if set(ends) <= set(names)})
    places = _places(names, layers, arrows)
    width, height = max(x for x, _ in places.values()) + 3.0, max(y for _, y in places.values()) + 1.2
    with pyplot.rc_context({"svg.hashsalt": "layers", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots(figsize=(width, height))
        for y in sorted({y for _, y in places.values()}):
            axes.axhspan(y - 0.42, y + 0.42, color="#f0f3f8", zorder=0)
            axes.text(-1.75, y, f"layer {round(y / STEP[1])}", fontsize=9, color="#5a6472", va="center")
        for source, target in sorted(arrows):
            _arrow(axes, places[source], places[target])
        for name in names:
            _box(axes, places[name], name, counts[name])
        axes.set_xlim(-1.9, width - 1.9)
        axes.set_ylim(-0.6, height - 0.6)
        axes.axis("off")
        figure.savefig(output, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
        pyplot.close(figure)


def reduced(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows of a graph without cycles from which all others follow (its transitive reduction)."""
    targets: dict[str, set[str]] = defaultdict(set)
    for source, target in arrows:
        targets[source].add(target)

    def reaches(source: str, goal: str, seen: set[str]) -> bool:
        if source in seen:
            return False
        seen.add(source)
        return goal in targets[source] or any(reaches(name, goal, seen) for name in targets[source])

    return {
        (source, target)
        for source, target in arrows
        if not any(reaches(other, target, set()) for other in targets[source] - {target})
    }


def _places(names: Sequence[str], layers: Mapping[str, int], arrows: set[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Box centres. A row is sorted by the mean position of what its packages import, to keep arrows short."""
    rows: dict[int, list[str]] = defaultdict(list)
    for name in names:
        rows[layers[name]].append(name)
    widest = max(len(row) for row in rows.values())
    places: dict[str, tuple[float, float]] = {}
    for level in sorted(rows):

        def wish(name: str) -> tuple[float, str]:
            below = [places[target][0] for source, target in arrows if source == name and target in places]
            return (sum(below) / len(below) if below else 0.0, name)

        row = sorted(rows[level], key=wish)
        # Rows of equal length would hide arrows that pass a layer behind its boxes: every second row is shifted.
        start = (widest - len(row)) * STEP[0] / 2 + (STEP[0] / 4 if level % 2 else -STEP[0] / 4)
        places.update({name: (start + number * STEP[0], level * STEP[1]) for number, name in enumerate(row)})
    left = min(x for x, _ in places.values())
    return {name: (x - left, y) for name, (x, y) in places.items()}


def _box(axes: object, place: tuple[float, float], name: str, modules: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = place
    box = FancyBboxPatch(
        (x - BOX[0] / 2, y - BOX[1] / 2), *BOX, boxstyle="round,pad=0.02", facecolor="#ffffff", edgecolor="#3f51b5", zorder=3
    )
    axes.add_patch(box)  # type: ignore[attr-defined]
    plural = "module" if modules == 1 else "modules"
    style = {"ha": "center", "va": "center", "zorder": 4}
    axes.text(x, y + 0.1, name, fontsize=9.5, color="#1b2330", **style)  # type: ignore[attr-defined]
    axes.text(x, y - 0.13, f"{modules} {plural}", fontsize=7, color="#5a6472", **style)  # type: ignore[attr-defined]


def _arrow(axes: object, source: tuple[float, float], target: tuple[float, float]) -> None:
    ends = {"xy": (target[0], target[1] + BOX[1] / 2), "xytext": (source[0], source[1] - BOX[1] / 2)}
    style = {"arrowstyle": "-|>", "color": "#8c9bb5", "lw": 0.9, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", arrowprops=style, zorder=2, **ends)  # type: ignore[attr-defined]
