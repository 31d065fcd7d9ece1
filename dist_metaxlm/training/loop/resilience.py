"""Stopping in good order: a signal asks, all ranks agree after a step, a checkpoint is saved, exit code 75.

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
import torch.distributed as dist

from dist_metaxlm.parallel.process_group import rank, world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
INSIST_SECONDS = 1.0
"""A second SIGINT that comes sooner is the launcher handing on the first one."""
LOOK_SECONDS = 2.0
"""How long a request may wait, unless a step takes longer: launchers and Slurm kill 30 s after they have asked."""


class StopRequest:
    """Remembers that this process was asked to stop; the previous handlers come back with `restore`.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, step: int, most_steps: int) -> None:
        """After `step` steps done; the ranks ask one another at every multiple of `most_steps`, and sooner where steps are
        long (collective)."""
        self._asked: float | None = None
        self._most, self._steps, self._looked_at, self._looked = most_steps, 1, step, time.monotonic()
        # On the host: asking must not wait for the device.
        self._group = dist.new_group(backend="gloo") if world_size() > 1 and dist.get_backend() != "gloo" else None
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
                os.write(
                    sys.__stderr__.fileno() if sys.__stderr__ else 2,
                    b"\nstopping: saving after one of the next steps; Ctrl-C again ends at once without\n",
                )

    def agreed(self, step: int) -> bool:
        """True on all ranks when any of them was asked; to be called after each step, with the number of steps done.

        Collective where it is time to look, which the ranks agree upon, too: the slowest one's steps count.
        """
        if step % self._most and step - self._looked_at < self._steps:
            return False
        now = time.monotonic()
        seconds = (now - self._looked) / max(1, step - self._looked_at)
        self._looked_at, self._looked = step, now
        found = torch.tensor([self._asked is not None, -min(self._most, int(LOOK_SECONDS / max(seconds, 1e-9)))])
        if world_size() > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        asked, self._steps = bool(found[0]), max(1, -int(found[1]))
        return asked

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
