"""Worker processes: how many may process text at once, and their termination with the parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.popen_spawn_posix import Popen
    from multiprocessing.process import BaseProcess

_STARTING = threading.Lock()


class _Worker(SpawnProcess):
    """A spawned process that does not run the caller's script again.

    Python imports that script into each worker for functions defined in it; this package needs none of them. A script that
    calls `prepare` without `if __name__ == "__main__":` would call it again in each worker, which would wait for the first
    call forever.
    """

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        with _STARTING:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = script


class _WorkerContext(SpawnContext):
    Process = _Worker


WORKERS = _WorkerContext()
"""Context of worker processes. Spawned: the caller may have threads (torch, MPI) that a fork would break."""


def available_cores() -> int:
    """Cores this process may run on (a job's share of a node, not the node)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """End this worker process at once when its parent ends for any reason; the pool's own workers would keep waiting.

    Ctrl-C reaches all processes of a terminal; the parent stops the workers, which would otherwise each print a traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
