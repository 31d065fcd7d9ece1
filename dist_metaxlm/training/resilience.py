"""Stopping in good order: a signal asks, all ranks agree at the next log interval, a checkpoint is saved, exit code 75.

Slurm sends SIGUSR1 before its time limit (`--signal=USR1@120`) and SIGTERM on cancelling; launchers pass SIGTERM on.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch

from dist_metaxlm.parallel.process_group import all_reduce

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers that this process was asked to stop; the previous handlers come back with `restore`."""

    def __init__(self) -> None:
        self._asked = False
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only a note: inside a handler a collective could be half done.
        self._asked = True

    def agreed(self, device: torch.device) -> bool:
        """True on all ranks when any of them was asked (collective)."""
        return bool(all_reduce(torch.tensor([int(self._asked)], device=device), "max").item())

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
