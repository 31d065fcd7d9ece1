"""Progress of a long preparation: a bar on a terminal, otherwise a line at intervals."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Log = Callable[[str], None]

POLL_SECONDS, LINE_SECONDS = 0.5, 15.0


@contextmanager
def reporting(done: Callable[[], int], total: int, log: Log) -> Iterator[None]:
    """Report `done()` of `total` bytes, with MB/s and the time left, until the block ends.

    A bar on standard error if that is a terminal; otherwise a line through `log`, the first after LINE_SECONDS.
    """
    already, start = done(), time.monotonic()
    if already:
        log(f"{already / 1e6:.1f} MB of {total / 1e6:.1f} MB are finished from an earlier run")
    end = threading.Event()
    show = _bar if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(done, total, already, start, end, log), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def line(done: int, total: int, already: int, seconds: float) -> str:
    """`120.0 of 480.0 MB, 12.0 MB/s, 30 s left`."""
    speed = (done - already) / max(seconds, 1e-9)
    left = f", {(total - done) / speed:.0f} s left" if speed else ""
    return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB, {speed / 1e6:.1f} MB/s{left}"


def _lines(done: Callable[[], int], total: int, already: int, start: float, end: threading.Event, log: Log) -> None:
    while not end.wait(LINE_SECONDS):
        log(line(done(), total, already, time.monotonic() - start))


def _bar(done: Callable[[], int], total: int, already: int, start: float, end: threading.Event, log: Log) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(
        TextColumn("store"), BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=max(total, 1))
        while not end.wait(POLL_SECONDS):
            now = done()
            bar.update(task, completed=now, description=line(now, total, already, time.monotonic() - start))
