"""This process's rank and the node of every rank, independent of the launcher that started the process.

The only source of this information for all other code. It supports `deepspeed`, `torchrun`, MPI through mpi4py, Slurm's
`srun`, Kubernetes operators and Jobs, and a single process (`parallel/launchers.py` reads each).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

_NAME_BYTES = 64
"""Maximum length of a Linux host name."""


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
    """What started the job: `deepspeed`, `torchrun`, `kubernetes`, `environment` (another launcher), `shell` (variables
    without LOCAL_RANK), `mpi`, `slurm` or `single`."""
    node_of_ranks: tuple[int, ...] = ()
    """Number of the node of each rank; empty if the launcher does not say, which is read as equally filled nodes."""
    hosts: tuple[str, ...] = ()
    """Name of each node, if known."""

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
        """The host that a rank runs on, as far as it is known."""
        node = self.ranks_to_nodes()[rank]
        return self.hosts[node] if node < len(self.hosts) else f"node {node}"

    def link(self, rank: int, other: int) -> str:
        """The fastest link between two ranks: `self`, `node` (NVLink, PCIe or memory) or `network`."""
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
        topology = read(os.environ)
        if topology is not None:
            return topology
    _chosen.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_PORT=str(free_port()))
    os.environ.update(_chosen)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    return Topology(0, 1, 0, 1, "single", (0,), (socket.gethostname(),))


def forget_topology() -> None:
    """Remove the variables that `detect_topology` set for a single process, for its next run and its children.

    The store of the finished run keeps its port.
    """
    if _chosen and all(os.environ.get(name) == value for name, value in _chosen.items()):
        for name in _chosen:
            del os.environ[name]
    _chosen.clear()


def filled_nodes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The node of each rank if nodes are filled one after another with `sizes` ranks."""
    return tuple(node for node, size in enumerate(sizes) for _ in range(size))


def locate_ranks(topology: Topology, device: torch.device) -> Topology:
    """`topology` with the actual node of every rank, from the host names of all ranks (collective)."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return topology
    name = socket.gethostname().encode()[:_NAME_BYTES]
    own_name = torch.zeros(_NAME_BYTES, dtype=torch.uint8)
    own_name[: len(name)] = torch.tensor(list(name), dtype=torch.uint8)
    gathered = [torch.empty(_NAME_BYTES, dtype=torch.uint8, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own_name.to(device))
    names = [bytes(part.tolist()).rstrip(b"\0").decode("ascii", "replace") for part in gathered]
    hosts = list(dict.fromkeys(names))
    return replace(
        topology,
        node_of_ranks=tuple(hosts.index(name) for name in names),
        hosts=tuple(hosts),
        local_world_size=names.count(names[topology.rank]),
    )


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
