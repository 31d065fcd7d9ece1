"""All trackers of a phase as one: a failing tracker is named once and left out; training goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType

from dist_metaxlm.reporting.records import Record
from dist_metaxlm.tracking.registry import make_tracker
from dist_metaxlm.tracking.tracker import TrackedPhase, Tracker, figures_of

logger = logging.getLogger(__name__)


class TrackerLog:
    """The started trackers of a phase; a context manager that finishes them."""

    def __init__(self, names: Sequence[str], phase: TrackedPhase) -> None:
        """Start the trackers `names` for `phase`.

        Raises:
            UserError: if one of them cannot start; those before it are finished.
        """
        self._trackers: dict[str, Tracker] = {}
        try:
            for name in dict.fromkeys(names):
                tracker = make_tracker(name)
                tracker.start(phase)
                self._trackers[name] = tracker
        except BaseException:
            self.close(completed=False)
            raise

    def write(self, record: Record) -> None:
        """Give a record's figures to every tracker."""
        figures = figures_of(record) if self._trackers else {}
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(record["step"], figures)
            except Exception as error:  # another package, often a network: no reason to end a long run
                del self._trackers[name]
                self._report(name, error, "gets no more figures of this start; metrics.jsonl has them all")

    def close(self, completed: bool) -> None:
        """Finish every tracker."""
        for name, tracker in self._trackers.items():
            try:
                tracker.finish(completed)
            except Exception as error:  # the same
                self._report(name, error, "may lack the last figures; metrics.jsonl has them all")
        self._trackers = {}

    def _report(self, name: str, error: Exception, effect: str) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        logger.warning(f"tracker {name} failed ({reason}) and {effect}")

    def __enter__(self) -> TrackerLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(completed=error is None)
