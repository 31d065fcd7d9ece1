"""The live line: a progress bar on a terminal, one plain line per log interval elsewhere. Rank 0 only."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dist_metaxlm.reporting.records import Record

logger = logging.getLogger(__name__)


class ProgressLine:
    """Shows step, loss per objective, tokens/s and the time left."""

    def __init__(self, phase: str, total_steps: int, first_step: int, shown: bool) -> None:
        self._shown, self._total, self._first, self._phase = shown, total_steps, first_step, phase
        self._start = time.monotonic()
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[news]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(phase, total=total_steps, completed=first_step, news="")

    def __enter__(self) -> ProgressLine:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, record: Record) -> None:
        """Show the metrics of one log interval."""
        if not self._shown:
            return
        losses = "  ".join(f"{name} {value:.3f}" for name, value in record["losses"].items())
        news = f"{losses}  {record['tokens_per_second']:,.0f} tokens/s"
        if "probe" in record:
            news += f"  retrieval {record['probe']['retrieval']:.3f}"
        if "heldout" in record:
            table = record["heldout"]["word_frequencies"]
            news += f"  held-out {record['heldout']['bits_per_byte']:.3f} bits/byte"
            news += f" (word frequencies {table:.3f})" if table is not None else ""
        if self._bar:
            self._bar.update(self._task, completed=record["step"], news=news)
            return
        loss = "-" if record["loss"] is None else f"{record['loss']:.3f}"
        done = max(1, record["step"] - self._first)
        left = (time.monotonic() - self._start) / done * (self._total - record["step"])
        logger.info(
            f"{self._phase} step {record['step']}/{self._total}  loss {loss}  {news}  "
            f"learning rate {record['learning_rate']:.2e}  left {int(left // 60)}:{int(left % 60):02d}"
        )
