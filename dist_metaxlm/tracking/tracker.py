"""The interface of trackers: what a program that records experiments gets from a phase. See docs/how-to/add-a-tracker.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dist_metaxlm.reporting.records import Environment, Record


@dataclass(frozen=True, kw_only=True)
class TrackedPhase:
    """What a tracker is told when a phase starts or resumes."""

    run: str
    """The recipe's name."""
    phase: str
    folder: Path
    """The phase's folder. A tracker may keep a file of its own in it, such as the id under which a resumed phase goes on."""
    step: int
    """Steps done so far; 0 for a new phase."""
    settings: Mapping[str, object]
    """The recipe as `section.field` -> value, defaults included."""
    environment: Environment
    """Hardware, versions, commit and command."""


class Tracker(Protocol):
    """Records the figures of one phase. Only the first rank has trackers."""

    def start(self, phase: TrackedPhase) -> None:
        """Begin, or go on with the record of a resumed phase; called before the first step.

        Raises:
            UserError: if it cannot record; the phase does not start then.
        """

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record the figures of a log interval that ends with `step`. An exception is logged and ends only this tracker."""

    def finish(self, completed: bool) -> None:
        """The phase ended: with all its steps (`completed`), or stopped or failed, and may be resumed."""


def figures_of(record: Record) -> dict[str, float]:
    """All numbers of a metrics record as `group/name` -> value, such as `losses/mlm`; the mix of languages is left out."""
    left_out = ("step", "realised", "asked", "asked_so_far")
    figures: dict[str, float] = {}
    for name, value in record.items():
        if name not in left_out:
            _collect(figures, name, value)
    return figures


def _collect(figures: dict[str, float], name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _collect(figures, f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        figures[name] = float(value)
