"""Worker processes: how many may work on text at once, and that none outlives the one that wanted its work."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process


def available_cores() -> int:
    """Cores this process may run on (a job's share of a node, not the node)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def end_with_parent() -> None:
    """End this worker process at once when its parent ends, however that ends; the pool's own workers would wait on.

    Ctrl-C reaches all processes of a terminal; the parent tells the workers, which would print a traceback each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
