"""Measures bandwidth between nodes with the training backend: every pair in turn, then an all-reduce over all."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dist_metaxlm.parallel.environment import interface_towards
from dist_metaxlm.parallel.rendezvous import rendezvous
from dist_metaxlm.parallel.topology import Topology

REPEATS = 3


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """A tournament: all pairs of nodes, in rounds of pairs that share no node."""
    players: list[int | None] = [*range(nodes), *([None] if nodes % 2 else [])]
    plan = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        plan.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return plan


def measure(rank: int, hosts: Sequence[str], port: int, megabytes: float, limit: float) -> dict[str, Any]:
    """GB/s from this node to each higher-numbered one, and of an all-reduce over all (collective, one process per node).

    Raises:
        UserError: if the nodes cannot connect within `limit` seconds.
    """
    os.environ.update(MASTER_ADDR=hosts[0], MASTER_PORT=str(port))
    interface = interface_towards(hosts[0])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    topology = Topology(rank, len(hosts), 0, 1, "preflight", tuple(range(len(hosts))), tuple(hosts))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=rendezvous(topology, limit),
        rank=rank,
        world_size=len(hosts),
        timeout=timedelta(seconds=limit),
    )
    try:
        return _measure(rank, len(hosts), torch.zeros(int(megabytes * 250_000), device=device))
    finally:
        dist.destroy_process_group()


def _measure(rank: int, nodes: int, buffer: torch.Tensor) -> dict[str, Any]:
    size = buffer.numel() * 4
    pairs: dict[str, float] = {}
    for pairs_of_round in rounds(nodes):
        dist.barrier()
        for pair in pairs_of_round:
            if rank in pair:
                took = min(_there_and_back(buffer, pair, rank) for _ in range(REPEATS))
                if rank == pair[0]:
                    pairs[str(pair[1])] = 2 * size / took / 1e9
    quickest, right = float("inf"), True
    for _ in range(REPEATS):
        buffer.fill_(rank + 1)
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(buffer)
        right &= bool((buffer == nodes * (nodes + 1) / 2).all().item())  # waits for a device, too
        quickest = min(quickest, time.perf_counter() - started)
    return {"pairs": pairs, "all_gbs": size / quickest / 1e9, "sum_is_right": right}


def _there_and_back(buffer: torch.Tensor, pair: tuple[int, int], rank: int) -> float:
    """Seconds for the buffer to go to the other node of the pair and back."""
    other = pair[1] if rank == pair[0] else pair[0]
    started = time.perf_counter()
    if rank == pair[0]:
        dist.send(buffer, other)
        dist.recv(buffer, other)
    else:
        dist.recv(buffer, other)
        dist.send(buffer, other)
    if buffer.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started
