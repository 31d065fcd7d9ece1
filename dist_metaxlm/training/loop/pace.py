"""Speed, use of the devices, memory and remaining time of a phase, read once per log interval."""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from dist_metaxlm.liveness import operations
from dist_metaxlm.parallel.process_group import world_size
from dist_metaxlm.planning.flops import objective_flops
from dist_metaxlm.planning.hardware import model_flops_utilisation
from dist_metaxlm.recipe.schema import ModelConfig, Objective, PhaseConfig
from dist_metaxlm.reporting.records import Pace, SlowRank
from dist_metaxlm.training.loop.metrics import Clock
from dist_metaxlm.training.loop.progress import Progress

LEAST_SHARE = 0.1
"""Share of the interval below which no rank is named."""
_HOST_BYTES = 64


class PaceMeter:
    """Counts the steps of a log interval. Memory is that of this rank; operations are those of all ranks."""

    def __init__(
        self, clock: Clock, model: ModelConfig, phase: PhaseConfig, progress: Progress, device: torch.device
    ) -> None:
        """`progress`: where this start of the phase begins."""
        self._clock, self._device, self._total = clock, device, phase.total_steps
        self._flops = {
            objective.name: objective_flops(model, objective, phase.sequence_length, phase.mask_rate)
            for objective in phase.objectives
        }
        self._first, self._start, self._counted, self._tokens = progress.step, time.monotonic(), 0.0, progress.tokens
        self._name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""

    def add(self, objectives: Sequence[tuple[Objective, float, int]]) -> None:
        """Count a step that was computed."""
        self._counted += sum(self._flops[objective.name] for objective, *_ in objectives)

    def read(self, progress: Progress) -> Pace:
        """Figures of the interval that ends now; updates `progress.seconds` and begins the next interval."""
        rate, progress.seconds, waited, seconds = self._clock.read(progress.tokens - self._tokens)
        flops = self._counted / seconds / world_size()
        self._counted, self._tokens = 0.0, progress.tokens
        done = max(1, progress.step - self._first)
        figures: Pace = {
            "tokens_per_second": rate,
            "data_wait_share": waited,
            "flops_per_second": flops,
            "host_memory": host_memory(),
            "seconds_left": (time.monotonic() - self._start) / done * (self._total - progress.step),
        }
        if self._device.type == "cuda":
            figures["device_memory"] = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            utilisation = model_flops_utilisation(flops, self._name)
            if utilisation is not None:
                figures["mfu"] = utilisation
        return figures


def host_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def interval_text(pace: Pace) -> str:
    """Use of the devices and memory in words, such as `312.5 TFLOP/s (MFU 31.6%)  41.2 GB GPU  12.0 GB host`."""
    words = []
    if "flops_per_second" in pace:
        utilisation = f" (MFU {pace['mfu']:.1%})" if "mfu" in pace else ""
        unit, name = (1e12, "TFLOP/s") if pace["flops_per_second"] >= 1e11 else (1e9, "GFLOP/s")
        words.append(f"{pace['flops_per_second'] / unit:.3g} {name}{utilisation}")
    if "device_memory" in pace:
        words.append(f"{pace['device_memory'] / 1e9:.1f} GB GPU")
    if "host_memory" in pace:
        words.append(f"{pace['host_memory'] / 1e9:.1f} GB host")
    return "  ".join(words)


def duration(seconds: float) -> str:
    """`0:07`, `59:00`, `1:00:00` or `2d 03:00:00`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
