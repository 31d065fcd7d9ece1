"""This rank's micro-batches in order, prefetched by a thread; one of several ranks with equal batches reads them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist

from dist_metaxlm import failpoints
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.prefetch import prefetch
from dist_metaxlm.data.steps import MicroStep, StepPlan
from dist_metaxlm.parallel.groups import groups

PREFETCHED = 4
"""Micro-batches assembled ahead of the model."""
_ABSENT = -1
# xlco's batches are never sent: tensor parallelism refuses it (recipe/schema.py)
_TENSORS = [field.name for field in fields(PackedBatch) if field.name not in ("window", "starts", "texts", "keys")]


def batches(
    plan: StepPlan, data: PhaseData, first_step: int, total: int, device: torch.device, stepped_over: Collection[int] = ()
) -> Iterator[PackedBatch]:
    """The micro-batches of the steps first_step .. total - 1, in host memory, pinned for a CUDA device.

    Those of the steps `stepped_over` are left out; their numbers count from 1.

    The first tensor rank reads them and sends them to its peers. In a pipeline the first stage needs their tokens and the
    last their targets; the stages between need no batch.
    """
    grid = groups()
    if 0 < grid.stage < grid.stages - 1:
        return
    steps = (step for step in range(first_step, total) if step + 1 not in stepped_over)
    micro_steps = ((step, micro) for step in steps for micro in plan.at(step))
    pinned = device.type == "cuda"
    peers = grid.batches
    if peers is None:
        yield from prefetch((_reading(data, step, micro, pinned) for step, micro in micro_steps), PREFETCHED)
        return
    read = (
        prefetch((_reading(data, step, micro, False) for step, micro in micro_steps), PREFETCHED)
        if grid.tensor_rank == 0
        else None
    )
    while True:
        # Sent from the consuming thread: a prefetching thread could send a batch that a stopping peer no longer receives.
        batch = share_batch(next(read, None) if read else None, peers)
        if batch is None:
            return
        yield batch.pinned() if pinned else batch


def _reading(data: PhaseData, step: int, micro: MicroStep, pinned: bool) -> Callable[[], PackedBatch]:
    def read() -> PackedBatch:
        failpoints.reach("reading", step + 1)
        batch = data.batch(micro.objective, micro.first, micro.count, micro.stage)
        return batch.pinned() if pinned else batch

    return read


def share_batch(batch: PackedBatch | None, group: dist.ProcessGroup) -> PackedBatch | None:
    """The batch of the first rank of `group`, which is in gloo, on each of its ranks (collective); None if it has none.

    Two broadcasts: the sizes, then all fields as one buffer, since a broadcast costs more to start than to send.
    """
    first = dist.get_global_rank(group, 0)
    sizes = torch.full((len(_TENSORS) + 1,), _ABSENT, dtype=torch.int64)
    if batch is not None:
        numbers = [_ABSENT if getattr(batch, name) is None else getattr(batch, name).numel() for name in _TENSORS]
        sizes.copy_(torch.tensor([*numbers, batch.window]))
    dist.broadcast(sizes, first, group=group)
    *numbers, window = sizes.tolist()
    if window == _ABSENT:
        return None
    buffer = torch.empty(sum(max(0, number) for number in numbers), dtype=torch.int64)
    if batch is not None:
        torch.cat(
            [getattr(batch, name).reshape(-1).to(torch.int64) for name in _TENSORS if getattr(batch, name) is not None],
            out=buffer,
        )
    dist.broadcast(buffer, first, group=group)
    return batch if batch is not None else _unpacked(buffer, numbers, window)


def _unpacked(buffer: torch.Tensor, numbers: list[int], window: int) -> PackedBatch:
    parts = iter(torch.split(buffer, [number for number in numbers if number != _ABSENT]))
    values: dict[str, Any] = {
        name: None if number == _ABSENT else next(parts) for name, number in zip(_TENSORS, numbers, strict=True)
    }
    values["cu_seqlens"] = values["cu_seqlens"].to(torch.int32)
    if values["pairs"] is not None:
        values["pairs"] = values["pairs"].view(-1, 2)
    return PackedBatch(window=window, **values)
