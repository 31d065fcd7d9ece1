"""Stopping in good order: a signal asks, all ranks agree at the next log interval, a checkpoint is saved, exit code 75.

Slurm sends SIGUSR1 before its time limit (`--signal=USR1@120`) and SIGTERM on cancelling; launchers pass SIGTERM on; a
terminal sends SIGINT for Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

import torch

from dist_metaxlm.parallel.process_group import all_reduce, rank

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INSIST_SECONDS = 1.0
"""A second SIGINT that comes sooner is the launcher handing on the first one."""


class StopRequest:
    """Remembers that this process was asked to stop; the previous handlers come back with `restore`.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self._asked: float | None = None
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only a note: inside a handler a collective could be half done.
        now = time.monotonic()
        if number == signal.SIGINT and self._asked is not None and now - self._asked > INSIST_SECONDS:
            raise KeyboardInterrupt
        if self._asked is None:
            self._asked = now
            if number == signal.SIGINT and rank() == 0:
                # Not print: the line that is being written when the signal comes must not be written into.
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2,
                         b"\nstopping: saving at the next line of metrics; Ctrl-C again ends at once without\n")

    def agreed(self, device: torch.device) -> bool:
        """True on all ranks when any of them was asked (collective)."""
        return bool(all_reduce(torch.tensor([int(self._asked is not None)], device=device), "max").item())

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
