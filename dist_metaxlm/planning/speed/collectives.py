"""Seconds of collectives and transfers by bytes, link, number of ranks and their place on nodes.

Rings for the bytes (a rank of n sends (n - 1) / n of the data for each pass), trees between nodes for the latency. The ranks
of a group that share a node share its links to other nodes: NCCL runs a ring for each.
"""

from __future__ import annotations

import math

from dist_metaxlm.planning.cluster import Cluster

ALL_REDUCE, ONE_WAY = 2, 1
"""Passes over the data: an all-reduce is a reduce-scatter and an all-gather."""


def ring_seconds(cluster: Cluster, size: float, ranks: int, stride: int, passes: float, calls: int = 1) -> float:
    """Seconds of `calls` equal collectives over `size` bytes in total of `ranks` ranks that are `stride` apart."""
    if ranks <= 1 or size <= 0:
        return 0.0
    members = max(1, min(ranks, cluster.devices_per_node // stride))
    nodes = -(-ranks // members)
    speed = cluster.inside.speed
    latency = cluster.inside.latency * min(members - 1, 2 * math.log2(max(2, members)))
    if nodes > 1:
        speed = min(speed, members * cluster.between.speed) if members > 1 else cluster.between.speed
        latency += cluster.between.latency * math.log2(nodes)
    return passes * ((ranks - 1) / ranks * size / speed + calls * latency)


def transfer_seconds(cluster: Cluster, size: float, distance: int) -> float:
    """Seconds of sending `size` bytes to the rank that is `distance` ranks away, on average over the ranks of a cluster."""
    crossing = 0.0 if cluster.nodes == 1 else min(1.0, distance / cluster.devices_per_node)
    inside, between = cluster.inside, cluster.between
    return (1 - crossing) * (inside.latency + size / inside.speed) + crossing * (between.latency + size / between.speed)
