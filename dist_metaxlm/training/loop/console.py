"""The live lines: a progress bar on a terminal, one plain line per log interval elsewhere. Rank 0 only."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from dist_metaxlm.reporting.records import Record
from dist_metaxlm.training.loop.pace import duration, interval_text

logger = logging.getLogger(__name__)


class _Bar(Progress):
    """A bar as wide as the terminal, and below it the figures of the last log interval, wrapped to that width."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Called by rich for every refresh."""
        yield self.make_tasks_table(self.tasks)
        if self.figures:
            yield Text(self.figures)


class ProgressLine:
    """Shows the step, and per log interval losses, speed, memory, what was measured and the time left."""

    def __init__(self, phase: str, total_steps: int, first_step: int, shown: bool, terminal: Console | None = None) -> None:
        """`terminal`: where the bar goes; None: standard error, if that is a terminal."""
        self._shown, self._total, self._phase = shown, total_steps, phase
        self._bar: _Bar | None = None
        if shown and (terminal is not None or sys.stderr.isatty()):
            self._bar = _Bar(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=terminal or Console(stderr=True),
                expand=True,
            )
            self._task = self._bar.add_task(phase, total=total_steps, completed=first_step)

    def __enter__(self) -> ProgressLine:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Move the bar to `step` completed steps."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def show(self, record: Record) -> None:
        """Show the metrics of one log interval."""
        if not self._shown:
            return
        loss = "-" if record["loss"] is None else f"{record['loss']:.3f}"
        line = f"loss {loss}  {figures_text(record)}"
        if self._bar:
            self._bar.figures = line
            self._bar.update(self._task, completed=record["step"])
            return
        left = f"  left {duration(record['seconds_left'])}" if "seconds_left" in record else ""
        logger.info(f"{self._phase} step {record['step']}/{self._total}  {line}{left}")


def figures_text(record: Record) -> str:
    """Losses by objective, tokens and speed, memory, held-out figures if measured, and the learning rate."""
    parts = [f"{name} {value:.3f}" for name, value in record["losses"].items()]
    parts.append(f"{record['tokens']:,} tokens  {record['tokens_per_second']:,.0f} tokens/s")
    parts.append(interval_text(record))
    if "probe" in record:
        parts.append(f"retrieval {record['probe']['retrieval']:.3f}")
    if "heldout" in record:
        table = record["heldout"]["word_frequencies"]
        beside = f" (word frequencies {table:.3f})" if table is not None else ""
        parts.append(f"held-out {record['heldout']['bits_per_byte']:.3f} bits/byte{beside}")
    parts.append(f"learning rate {record['learning_rate']:.2e}")
    return "  ".join(part for part in parts if part)
