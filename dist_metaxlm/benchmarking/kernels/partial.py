"""What a measurement has found so far, beside the file of its result: a command that is ended early leaves that much."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def keep_partial_results(output: str | None) -> Callable[[dict[str, Any]], None]:
    """Writes each result it is given to `OUTPUT.part`, whole or not at all; nothing without an output."""

    def keep(so_far: dict[str, Any]) -> None:
        if output is not None:
            fresh = Path(f"{output}.part.new")
            fresh.write_text(json.dumps(so_far) + "\n", encoding="utf-8")
            os.replace(fresh, _part(Path(output)))

    return keep


def finished(output: str) -> None:
    """The result itself is written: forget what was kept on the way."""
    _part(Path(output)).unlink(missing_ok=True)


def partial_result(output: Path) -> dict[str, Any] | None:
    """What was kept for `output`, None without any."""
    try:
        return dict(json.loads(_part(output).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _part(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")
