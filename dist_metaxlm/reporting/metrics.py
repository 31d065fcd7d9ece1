"""Read and write the files of a run: metrics lines, evaluation results and other JSON; tolerates a line cut by a crash."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from dist_metaxlm.errors import UserError
from dist_metaxlm.reporting.records import Record
from dist_metaxlm.storage.atomic import write_text

UNTRAINED = "untrained"
USUAL_ORDER = ("meta", "cross", "joint")
"""Phases of the shipped recipes."""
_SET_ASIDE = re.compile(r".+-until-\d{8}T\d+")


def read_metrics(path: Path) -> list[Record]:
    """Records of a `metrics.jsonl`, steps ascending; empty without the file.

    A process killed while writing leaves a partial line, which is skipped. A resumed phase goes back to its checkpoint
    and logs steps a second time: from that step on, only the later records are returned.
    """
    if not path.is_file():
        return []
    records: list[Record] = []
    for line in json_lines(path):
        record = _parse(line)
        if record is None:
            continue
        while records and records[-1]["step"] >= record["step"]:
            records.pop()
        records.append(record)
    return records


def json_lines(path: Path) -> list[str]:
    """Lines of a file with one JSON value per line. `str.splitlines` would also split at U+2028 inside a string."""
    return path.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")


def _parse(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast(Record, record) if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def read_json(path: Path) -> Any | None:
    """Contents of a JSON file, or None if it does not exist.

    Raises:
        UserError: the file is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not JSON; remove it and run the command again that writes it") from None


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; infinity and NaN, which JSON lacks, become null."""
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_output(path: Path) -> None:
    """Check, before hours of work, that the output file can be written; creates its folder.

    Raises:
        UserError: the file is a folder, or its folder is a file.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; give a file in it, such as {path / 'figures.json'}")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"--output {path}: {above} is a file, no folder; correct the path")
    path.parent.mkdir(parents=True, exist_ok=True)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the finite values, None without any."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def log_mean(values: Iterable[float | None]) -> float | None:
    """exp of the mean logarithm of the known values, None without any."""
    logarithm = mean(math.log(value) for value in values if value)
    return None if logarithm is None else math.exp(logarithm)


def begun_phases(run_dir: Path) -> list[str]:
    """Phases that have a folder in a run, those with the usual names first."""
    folders = sorted({path.parent.name for path in (*run_dir.glob("*/recipe.yaml"), *run_dir.glob("*/metrics.jsonl"))})
    begun = [name for name in folders if not _SET_ASIDE.fullmatch(name)]
    return sorted(begun, key=lambda name: USUAL_ORDER.index(name) if name in USUAL_ORDER else len(USUAL_ORDER))


def possible_phases(run_dir: Path, recipe_phases: Iterable[str]) -> list[str]:
    """Phases that a run may have results of, in order: those of its recipe, the usual ones, others that have a folder.

    The usual ones keep their order among themselves, also in a recipe whose keys were sorted.
    """
    names = dict.fromkeys([*recipe_phases, *USUAL_ORDER, *begun_phases(run_dir)])
    usual = iter(USUAL_ORDER)
    return [next(usual) if name in USUAL_ORDER else name for name in names]


def outcome_order(phases: Iterable[str]) -> list[str]:
    """Phases with the one first that shows the outcome of a run: the last one, but `joint`, a baseline, after `cross`."""
    names = list(phases)[::-1]
    if "joint" in names and "cross" in names:
        names.remove("joint")
        names.insert(names.index("cross") + 1, "joint")
    return names


def evaluated(folder: Path, phases: Iterable[str]) -> list[str]:
    """Checkpoints that a run's `evaluation` folder may have results of, in order: phases, and `PHASE@STEP` after theirs."""
    names = []
    for name in (UNTRAINED, *phases):
        others = sorted(path.stem for path in folder.glob(f"{name}@*.json") if "-" not in path.stem.partition("@")[2])
        names += [name, *others]
    return names


def series(records: list[Record], *keys: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure, such as `series(records, "losses", "mlm")`, at the steps that logged it."""
    steps, values = [], []
    for record in records:
        value: object = record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            steps.append(record["step"])
            values.append(float(value))
    return steps, values


def keys_of(records: list[Record], *path: str) -> list[str]:
    """All keys at a path of the records, such as the objectives under `losses`, in order of appearance."""
    names: dict[str, None] = {}
    for record in records:
        value: object = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict):
            names.update(dict.fromkeys(value))
    return list(names)
