"""Partial results of a measurement, in a file next to the final result: they survive a command that is stopped early."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def keep_partial_results(output: str | None) -> Callable[[Mapping[str, object]], None]:
    """A function that writes each result it receives to `OUTPUT.part` atomically; does nothing without an output."""

    def keep(so_far: Mapping[str, object]) -> None:
        if output is not None:
            fresh = Path(f"{output}.part.new")
            fresh.write_text(json.dumps(so_far) + "\n", encoding="utf-8")
            os.replace(fresh, _part(Path(output)))

    return keep


def finished(output: str) -> None:
    """Remove the partial results, once the final one is written."""
    _part(Path(output)).unlink(missing_ok=True)


def partial_result(output: Path) -> dict[str, Any] | None:
    """The partial result of `output`, None without one."""
    try:
        return dict(json.loads(_part(output).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _part(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")
