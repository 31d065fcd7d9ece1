"""Predictions as JSON Lines, for error analysis, significance tests and other scripts of scoring."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dist_metaxlm.storage.atomic import write_text


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line, atomically; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
