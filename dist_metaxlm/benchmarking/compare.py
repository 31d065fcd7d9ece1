"""Two files of one benchmark: which figures are worse in the second.

Rates are better if larger; durations and peaks of memory if smaller. Figures that are derived from several others (speed-up,
efficiency, ratio to a baseline) and those of a baseline are left out: they change without any change of the trainer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from dist_metaxlm.errors import UserError

TOLERANCE = 0.05
_LARGER = re.compile(r"(_per_second|tflops|mfu)$")
_SMALLER = re.compile(r"(^|_)(seconds|milliseconds|seconds_per_step)$|^peak_\w*bytes$")
_BASELINE = re.compile(r"^(huggingface|baseline)_")
_SAME = ("benchmark", "recipe", "model", "phase", "unit", "dtype", "precision", "ranks", "threads", "layout", "overrides")
"""Fields at the top of a file by which two files measure the same."""
_SKIPPED = ("environment", "seconds_of_runs")
Place = tuple[str, ...]


class Change(TypedDict):
    """A figure in both files."""

    figure: str
    before: float
    after: float
    worse: float
    """Share by which it is worse, negative if it is better; 0.1: a duration 10 % longer, a rate of 1 / 1.1."""


class Comparison(TypedDict):
    """The figures of two files."""

    tolerance: float
    compared: int
    slower: list[Change]
    """Worse by more than the tolerance."""
    faster: list[Change]
    """Better by more than the tolerance."""
    unfinished: list[str]
    """In the first file only."""
    machines: list[str]
    """How the machines or versions differ."""


def compare(before: str, after: str, tolerance: float = TOLERANCE) -> Comparison:
    """Compare two results of `metaxlm benchmark ... --output`.

    Raises:
        UserError: for files that are no such results, or of different measurements, and for a tolerance that is no share.
    """
    if not (math.isfinite(tolerance) and 0 <= tolerance < 10):
        raise UserError(f"--tolerance {tolerance:g} is not a share; give a number from 0 to below 10, such as 0.05")
    first, second = _read(before), _read(after)
    for key in _SAME:
        if first.get(key) != second.get(key):
            raise UserError(
                f"{before} has {key} {first.get(key)!r}, {after} {second.get(key)!r}: different measurements; "
                "compare two runs of the same command"
            )
    old, new = dict(_figures(first, ())), dict(_figures(second, ()))
    if not old:
        raise UserError(f"{before} has no rates or durations; give a file of metaxlm benchmark NAME --output FILE")
    changes = [_change(place, old[place], new[place]) for place in old if place in new]
    return {
        "tolerance": tolerance,
        "compared": len(changes),
        "slower": [change for change in changes if change["worse"] > tolerance],
        "faster": [change for change in changes if change["worse"] < -tolerance],
        "unfinished": [_name(place) for place in old if place not in new],
        "machines": _machines(first, second),
    }


def sentences(result: Comparison) -> str:
    """The comparison in lines."""
    lines = [f"the machines differ: {', '.join(result['machines'])}"] if result["machines"] else []
    for kind, word in (("slower", "worse"), ("faster", "better")):
        for change in result[kind]:  # type: ignore[literal-required]
            lines.append(
                f"{word} by {abs(change['worse']):.1%}: {change['figure']}: {change['before']:.6g} -> {change['after']:.6g}"
            )
    lines += [f"not measured again: {name}" for name in result["unfinished"]]
    within = result["compared"] - len(result["slower"]) - len(result["faster"])
    return "\n".join([*lines, f"{within} of {result['compared']} figures are within {result['tolerance']:.1%}"])


def _read(file: str) -> dict[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file}: no such file; give a file of metaxlm benchmark NAME --output FILE")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); give a file of metaxlm benchmark NAME --output FILE") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object; give a file of metaxlm benchmark NAME --output FILE")
    return value


def _figures(value: object, place: Place) -> Iterator[tuple[Place, float]]:
    """Every rate, duration and peak with its place; rows of a list are named by their fields that are not measured."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _SKIPPED and not _BASELINE.match(key):
                yield from _figures(item, (*place, key))
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                yield from _figures(item, (*place, _row_name(item)))
    elif _direction(place) and _is_positive(value):
        yield place, float(value)  # type: ignore[arg-type]


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _row_name(row: Mapping[str, object]) -> str:
    """The plain fields of a row that are settings: texts and whole numbers."""
    settings = [
        (key, value)
        for key, value in row.items()
        if isinstance(value, str | int) and not isinstance(value, bool) and not _direction((key,))
    ]
    return " ".join(str(value) if isinstance(value, str) else f"{key}={value}" for key, value in settings)


def _direction(place: Place) -> int:
    """1 for a figure that is better if larger, -1 if smaller, 0 for anything else."""
    if _LARGER.search(place[-1]):
        return 1
    return -1 if any(_SMALLER.search(key) for key in place) else 0


def _change(place: Place, before: float, after: float) -> Change:
    worse = before / after - 1 if _direction(place) > 0 else after / before - 1
    return {"figure": _name(place), "before": before, "after": after, "worse": worse}


def _name(place: Place) -> str:
    return " / ".join(place)


def _machines(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    old, new = (value.get("environment") for value in (first, second))
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return []
    keys = ("device", "devices", "cpu_cores", "python", "system", "versions")
    return [f"{key} {old.get(key)!r} and {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]
