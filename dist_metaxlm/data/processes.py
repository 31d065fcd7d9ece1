"""How many processes may work on text at once."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores this process may run on (a job's share of a node, not the node)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
