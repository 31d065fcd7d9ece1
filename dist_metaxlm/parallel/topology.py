"""Who am I among the ranks, and on which node is each: one answer whatever launcher started the process.

Everything else asks only this: `deepspeed`, `torchrun`, MPI through mpi4py, Slurm's `srun`, the variables of Kubernetes
operators and Jobs, and a single process (`parallel/launchers.py` reads each).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

_NAME_BYTES = 64
"""A Linux host name has at most as many."""


@dataclass(frozen=True)
class Topology:
    """Place of this process in the job."""

    rank: int
    """Number of this process, 0 .. world_size - 1."""
    world_size: int
    """Processes of the job."""
    local_rank: int
    """Number of this process on its node, which is the number of its device."""
    local_world_size: int
    """Processes on this node."""
    launcher: str
    """What started the job: `deepspeed`, `torchrun`, `kubernetes`, `environment`, `mpi`, `slurm` or `single`."""
    node_of_ranks: tuple[int, ...] = ()
    """Number of the node of each rank; empty where the launcher does not say, which is taken as nodes equally filled."""
    hosts: tuple[str, ...] = ()
    """Name of each node, where they are known."""

    @property
    def nodes(self) -> int:
        """Nodes of the job."""
        return max(self.ranks_to_nodes()) + 1

    @property
    def node(self) -> int:
        """Number of this process's node."""
        return self.ranks_to_nodes()[self.rank]

    @property
    def is_first(self) -> bool:
        """True on the one rank that prints and writes shared files."""
        return self.rank == 0

    def ranks_to_nodes(self) -> tuple[int, ...]:
        """Number of the node of each rank."""
        return self.node_of_ranks or tuple(rank // max(1, self.local_world_size) for rank in range(self.world_size))

    def host(self, rank: int) -> str:
        """The host that a rank runs on, as well as it is known."""
        node = self.ranks_to_nodes()[rank]
        return self.hosts[node] if node < len(self.hosts) else f"node {node}"

    def link(self, rank: int, other: int) -> str:
        """The shortest way between two ranks: `self`, `node` (NVLink, PCIe or memory) or `network`."""
        places = self.ranks_to_nodes()
        return "self" if rank == other else "node" if places[rank] == places[other] else "network"


_chosen: dict[str, str] = {}
"""The variables that `detect_topology` has set for a process without a launcher."""


def detect_topology() -> Topology:
    """Read the launcher's environment and complete it (MASTER_ADDR, MASTER_PORT, RANK, ...) for torch.distributed.

    Raises:
        UserError: when a launcher's variables contradict each other.
    """
    from dist_metaxlm.parallel import launchers

    forget_topology()
    for read in (launchers.from_environment, launchers.from_kubernetes, launchers.from_mpi, launchers.from_slurm):
        found = read(os.environ)
        if found is not None:
            return found
    _chosen.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_PORT=str(free_port()))
    os.environ.update(_chosen)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    return Topology(0, 1, 0, 1, "single", (0,), (socket.gethostname(),))


def forget_topology() -> None:
    """Take what `detect_topology` chose for a process alone out of the environment, for its next run and its children.

    The port stays taken by the store of the run that is over.
    """
    if _chosen and all(os.environ.get(name) == value for name, value in _chosen.items()):
        for name in _chosen:
            del os.environ[name]
    _chosen.clear()


def filled_nodes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The node of each rank where nodes are filled one after another, `sizes` ranks on each."""
    return tuple(node for node, size in enumerate(sizes) for _ in range(size))


def locate_ranks(topology: Topology, device: torch.device) -> Topology:
    """`topology` with the node of every rank as it really is, by the host names of all ranks (collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return topology
    name = socket.gethostname().encode()[:_NAME_BYTES]
    mine = torch.zeros(_NAME_BYTES, dtype=torch.uint8)
    mine[: len(name)] = torch.tensor(list(name), dtype=torch.uint8)
    found = [torch.empty(_NAME_BYTES, dtype=torch.uint8, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine.to(device))
    names = [bytes(part.tolist()).rstrip(b"\0").decode("ascii", "replace") for part in found]
    hosts = list(dict.fromkeys(names))
    return replace(
        topology,
        node_of_ranks=tuple(hosts.index(name) for name in names),
        hosts=tuple(hosts),
        local_world_size=names.count(names[topology.rank]),
    )


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
