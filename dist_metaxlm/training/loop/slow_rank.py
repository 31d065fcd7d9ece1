"""Names a rank that the others wait for, in the metrics of each log interval."""

from __future__ import annotations

import socket
import statistics
import time

import torch
import torch.distributed as dist

from dist_metaxlm.liveness import operations
from dist_metaxlm.parallel.process_group import world_size
from dist_metaxlm.reporting.records import SlowRank

LEAST_SHARE = 0.1
"""Share of the interval below which no rank is named."""
_HOST_BYTES = 64


class SlowRankMeter:
    """Compares the time that each rank needs for what no other rank takes part in: reading data and the forward pass.

    Where ranks communicate within the forward pass (tensor parallelism, ZeRO-3, pipelines) they wait there for the slow one
    too, and the difference is smaller than the delay.
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        name = socket.gethostname().encode()[:_HOST_BYTES]
        self._host = torch.zeros(_HOST_BYTES, dtype=torch.float64)
        self._host[: len(name)] = torch.tensor(list(name), dtype=torch.float64)

    def read(self, device: torch.device) -> SlowRank | None:
        """The rank that the others have waited for since the last call (collective); None below `LEAST_SHARE`."""
        spent, now = operations.take_spent(), time.monotonic()
        interval, self._begun = max(now - self._begun, 1e-9), now
        if world_size() == 1:
            return None
        own = sum(spent.get(name, 0.0) for name in (operations.PREPARING, operations.READING, operations.FORWARD))
        row = torch.cat([torch.tensor([own / interval], dtype=torch.float64), self._host]).to(device)
        rows = [torch.empty_like(row) for _ in range(world_size())]
        dist.all_gather(rows, row)
        table = torch.stack(rows).cpu()
        hosts = [bytes(int(byte) for byte in line[1:] if byte).decode(errors="replace") for line in table]
        return slowest([float(line[0]) for line in table], hosts)


def slowest(shares: list[float], hosts: list[str]) -> SlowRank | None:
    """The rank with the largest share of its own time, if it exceeds the median of the others by `LEAST_SHARE`."""
    rank = max(range(len(shares)), key=shares.__getitem__)
    waited = shares[rank] - statistics.median(share for other, share in enumerate(shares) if other != rank)
    return {"rank": rank, "host": hosts[rank], "share": round(waited, 3)} if waited >= LEAST_SHARE else None
