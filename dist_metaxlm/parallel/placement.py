"""Rank placement: tensor groups within nodes, pipeline stages across nodes, data parallelism over the rest.

Ranks are numbered in megatron-core's `tp-cp-ep-dp-pp` order: rank = (stage * data size + data rank) * tensor size + tensor
rank. With nodes filled one after another, tensor groups (which communicate in every block) are inside a node if its ranks
are a multiple of the tensor size. Stages communicate least; they begin on a new node if their number divides the nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from dist_metaxlm.errors import UserError
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:  # it imports torch, which plans do not need
    from dist_metaxlm.parallel.topology import Topology

_SHOWN_NODES = 16
"""Rows of the grid; for more nodes only the first and the last are shown."""


class Nodes(Protocol):
    """Ranks and their nodes: a job's `Topology`, or a planned cluster."""

    @property
    def world_size(self) -> int:
        """All ranks."""

    def ranks_to_nodes(self) -> tuple[int, ...]:
        """Number of the node of each rank."""

    def host(self, rank: int) -> str:
        """The host that a rank runs on."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Placement:
    """The rank grid on the nodes of a job."""

    topology: Topology
    tensor: int
    """Ranks of a tensor group."""
    pipeline: int
    """Stages."""

    @property
    def data(self) -> int:
        """Copies of the model."""
        return self.topology.world_size // (self.tensor * self.pipeline)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(stage, data rank, tensor rank)."""
        return rank // (self.tensor * self.data), rank // self.tensor % self.data, rank % self.tensor

    def tensor_groups(self) -> Iterator[range]:
        """The ranks of each tensor group."""
        return _groups(self.topology.world_size, self.tensor)


def _groups(ranks: int, tensor: int) -> Iterator[range]:
    return (range(first, first + tensor) for first in range(0, ranks, tensor))


@lru_cache(maxsize=64)
def first_crossing(nodes: Nodes, tensor: int) -> range | None:
    """The first tensor group that spans several nodes; None if every group is inside one."""
    numbers = nodes.ranks_to_nodes()
    groups = _groups(nodes.world_size, tensor) if tensor > 1 else ()
    return next((group for group in groups if len(set(numbers[group.start : group.stop])) > 1), None)


def describe_crossing(nodes: Nodes, group: range) -> str:
    """Error text for a tensor group that spans several nodes, without the remedy."""
    hosts = list(dict.fromkeys(nodes.host(rank) for rank in group))
    return (
        f"parallel.tensor={len(group)} puts ranks {group[0]} to {group[-1]} of one tensor group on {', '.join(hosts)} "
        f"({pluralize(_smallest_node(nodes), 'rank')} a node), and they talk over the network in every block"
    )


def _smallest_node(nodes: Nodes) -> int:
    return min(Counter(nodes.ranks_to_nodes()).values())


def check_placement(topology: Topology, tensor: int, pipeline: int, tensor_across_nodes: bool) -> Placement:
    """The placement of a layout; an error if a tensor group spans nodes and the recipe does not allow it.

    Raises:
        UserError: naming the group, its nodes and the nearest tensor size that stays inside.
    """
    crossing = None if tensor_across_nodes else first_crossing(topology, tensor)
    if crossing is not None:
        smallest = _smallest_node(topology)
        inside = max(size for size in range(1, tensor + 1) if smallest % size == 0 and tensor % size == 0)
        raise UserError(
            f"{describe_crossing(topology, crossing)}; set parallel.tensor={inside}, or "
            "parallel.tensor_across_nodes=true if you want that"
        )
    return Placement(topology, tensor, pipeline)


def placement_lines(placement: Placement) -> list[str]:
    """The rank grid: a line per node, a cell per rank, such as `3 s0 d1 t1`: rank 3, stage 0, data rank 1, tensor rank 1."""
    topology = placement.topology
    nodes = topology.ranks_to_nodes()
    ranks: dict[int, list[int]] = {}
    for rank, node in enumerate(nodes):
        ranks.setdefault(node, []).append(rank)
    width = max(len(topology.host(members[0])) for members in ranks.values())
    lines = [
        f"placement: {pluralize(len(ranks), 'node')}, tensor {placement.tensor} x pipeline {placement.pipeline} x "
        f"data {placement.data}; rank: s stage, d data rank, t tensor rank"
    ]
    for position, members in enumerate(ranks.values()):
        if _SHOWN_NODES // 2 <= position < len(ranks) - _SHOWN_NODES // 2:
            if position == _SHOWN_NODES // 2:
                lines.append(f"  ... {len(ranks) - 2 * (_SHOWN_NODES // 2)} more")
            continue
        lines.append(f"  {topology.host(members[0]):<{width}} " + " ".join(f"|{_cell(placement, rank)}" for rank in members))
    links = {topology.link(group[0], rank) for group in placement.tensor_groups() for rank in group}
    lines.append(
        f"  tensor groups talk {'over the network' if 'network' in links else 'inside nodes'}"
        if placement.tensor > 1
        else f"  data-parallel ranks talk {_reach(topology)}"
    )
    return lines


def _cell(placement: Placement, rank: int) -> str:
    stage, data, tensor = placement.coordinates(rank)
    parts = [
        str(rank),
        f"s{stage}" if placement.pipeline > 1 else "",
        f"d{data}",
        f"t{tensor}" if placement.tensor > 1 else "",
    ]
    return " ".join(part for part in parts if part)


def _reach(topology: Topology) -> str:
    return "over the network" if topology.nodes > 1 else "inside one node"
