"""SIGTERM as Ctrl-C: the evaluation stops, deletes temporary folders and keeps what is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dist_metaxlm.errors import GracefulStop


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Raise GracefulStop (exit code 75) in the main thread when SIGTERM arrives; elsewhere do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the deletion of temporary folders
    raise GracefulStop(
        "by SIGTERM; finished tasks, seeds, languages and epochs are kept, run the same command again to go on after them"
    )
