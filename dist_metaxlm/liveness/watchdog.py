"""Starts the watcher of this rank and ends it."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_metaxlm.errors import EXIT_AGAIN
from dist_metaxlm.liveness import native_exit, operations
from dist_metaxlm.liveness.operations import BYTES, Limits, Operations

logger = logging.getLogger(__name__)
_ABOVE_FIRST_REALTIME = 6
"""Real-time signals have no other sender: Slurm and launchers send SIGUSR1 and SIGUSR2."""


@contextmanager
def watched(folder: Path, rank: int, size: int, limits: Limits) -> Iterator[None]:
    """Watch this rank inside the block: without a new operation within its limit, all ranks end with exit code 75.

    `folder` is made on a hang, for a report and the stacks of each rank; all ranks give the same one.
    """
    if not sys.platform.startswith("linux"):
        logger.warning("the watchdog needs Linux: hangs are not noticed here")
        yield
        return
    memory, stacks = os.memfd_create("operations"), os.memfd_create("stacks")
    os.ftruncate(memory, BYTES)
    number = signal.SIGRTMIN + _ABOVE_FIRST_REALTIME
    record = Operations(memory, limits, 0, alone=size == 1)
    faulthandler.register(number, file=stacks, all_threads=True)
    queue = native_exit.listen(EXIT_AGAIN)
    facts = {
        "rank": rank,
        "size": size,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "memory": memory,
        "stacks": stacks,
        "queue": queue,
        "signal": number,
        "folder": str(folder.resolve()),
    }
    descriptors = [descriptor for descriptor in (memory, stacks, queue) if descriptor is not None]
    watcher = subprocess.Popen(
        [sys.executable, "-P", "-m", "dist_metaxlm.liveness.watcher", json.dumps(facts)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
    )
    operations.use(record)
    try:
        yield
    finally:
        operations.use(None)
        if watcher.stdin is not None:
            watcher.stdin.close()
        watcher.wait()
        faulthandler.unregister(number)
        for descriptor in descriptors:
            os.close(descriptor)
        record.close()
