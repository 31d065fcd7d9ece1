"""Graceful stop: a signal requests it, all ranks agree after a step, a checkpoint is saved, exit code 75.

Slurm sends SIGUSR1 before its time limit (`--signal=USR1@120`) and SIGTERM on cancelling; launchers pass SIGTERM on; a
terminal sends SIGINT for Ctrl-C, and SIGHUP when it is closed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from dist_metaxlm.errors import GracefulStop
from dist_metaxlm.parallel.process_group import rank, world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
INSIST_SECONDS = 1.0
"""A second SIGINT within this time is the launcher's copy of the first one."""
LOOK_SECONDS = 2.0
"""Maximum delay of a request, unless a step takes longer: launchers and Slurm kill 30 s after their signal."""


class StopRequest:
    """Records stop signals of this process; `restore` reinstalls the previous handlers.

    A second Ctrl-C ends the process at once.
    """

    def __init__(self, step: int, most_steps: int) -> None:
        """`step`: completed steps. The ranks synchronise at every multiple of `most_steps`, and more often if steps are long
        (collective)."""
        self._asked: float | None = None
        self._most, self._steps, self._looked_at, self._looked = most_steps, 1, step, time.monotonic()
        # On the host: the check must not wait for the device.
        self._group = dist.new_group(backend="gloo") if world_size() > 1 and dist.get_backend() != "gloo" else None
        # nohup ignores SIGHUP, so that a closed terminal ends nothing.
        wanted = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in wanted}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only set a flag: the handler may interrupt a collective.
        now = time.monotonic()
        if number == signal.SIGINT and self._asked is not None and now - self._asked > INSIST_SECONDS:
            raise KeyboardInterrupt
        if self._asked is None:
            self._asked = now
            if number == signal.SIGINT and rank() == 0:
                # Not print: the signal may interrupt a line that is being written.
                os.write(
                    sys.__stderr__.fileno() if sys.__stderr__ else 2,
                    b"\nstopping: saving after one of the next steps; Ctrl-C again ends at once without\n",
                )

    def agreed(self, step: int) -> bool:
        """True on all ranks if any of them has a stop request; call it after each step with the number of completed steps.

        Collective when a check is due; the ranks agree on the interval, by the slowest one's step time.
        """
        if step % self._most and step - self._looked_at < self._steps:
            return False
        now = time.monotonic()
        seconds = (now - self._looked) / max(1, step - self._looked_at)
        self._looked_at, self._looked = step, now
        votes = torch.tensor([self._asked is not None, -min(self._most, int(LOOK_SECONDS / max(seconds, 1e-9)))])
        if world_size() > 1:
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        asked, self._steps = bool(votes[0]), max(1, -int(votes[1]))
        return asked

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, GracefulStop):  # its second signal must not end the process before it has left the group
            self.restore()

    def restore(self) -> None:
        """Reinstall the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
