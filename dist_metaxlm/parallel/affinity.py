"""Cores of each rank of a node: equal slices in the order of memory nodes, so that threads stay close to their memory."""

from __future__ import annotations

import os
from pathlib import Path

from dist_metaxlm.parallel.topology import Topology

_FEWEST = 2
"""A slice smaller than this is not bound: the rank's reading thread would compete with its computing thread."""


def cores_by_memory(system: Path = Path("/sys/devices/system/node")) -> list[int]:
    """All CPUs of this machine, grouped by memory (NUMA) node; empty if the kernel does not report nodes."""
    cores: list[int] = []
    for folder in sorted(system.glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        try:
            text = (folder / "cpulist").read_text(encoding="ascii").strip()
        except OSError:
            continue
        for part in text.split(",") if text else ():
            first, _, last = part.partition("-")
            cores += range(int(first), int(last or first) + 1)
    return cores


def slice_of(topology: Topology, allowed: set[int], ordered: list[int]) -> list[int]:
    """The CPUs of this rank: its share of those `allowed`, in the order of `ordered`."""
    usable = [core for core in ordered if core in allowed] + sorted(allowed - set(ordered))
    share = len(usable) // max(1, topology.local_world_size)
    return usable[topology.local_rank * share : (topology.local_rank + 1) * share]


def bind_cores(topology: Topology) -> tuple[int, ...]:
    """Bind this process to its slice and return its CPUs; a binding by the launcher (to fewer CPUs) is kept."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < (os.cpu_count() or 1) or topology.local_world_size == 1:
        return tuple(sorted(allowed))
    own = slice_of(topology, allowed, cores_by_memory())
    if len(own) < _FEWEST:
        return tuple(sorted(allowed))
    os.sched_setaffinity(0, own)
    return tuple(own)


def threads(topology: Topology) -> int:
    """Threads for this rank's matrix products: OMP_NUM_THREADS if the user set it, else its share of the node's cores.

    torchrun and deepspeed set OMP_NUM_THREADS=1 for several ranks of a node where the user set nothing; that is their
    default and not the user's wish, and would leave cores idle.
    """
    wish = os.environ.get("OMP_NUM_THREADS", "")
    launcher_default = wish == "1" and topology.local_world_size > 1
    if wish.isdigit() and int(wish) > 0 and not launcher_default:
        return int(wish)
    allowed, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    bound = allowed <= present // max(1, topology.local_world_size)
    return max(1, allowed if bound else allowed // max(1, topology.local_world_size))
