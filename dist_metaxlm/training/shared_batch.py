"""One batch for a whole group of ranks (tensor- and pipeline-parallel peers), read by the group's first rank alone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist

from dist_metaxlm.data.batch import PackedBatch

_ABSENT = -1
_TENSORS = [field.name for field in fields(PackedBatch) if field.name != "window"]


def share_batch(batch: PackedBatch | None, group: Any, device: torch.device) -> PackedBatch:
    """The batch of the first rank of `group`, on `device` of each of its ranks (collective over the group).

    The first rank gives `batch` on `device`, the others None. Two broadcasts: the sizes, then all fields as one buffer,
    since a broadcast costs more to start than to send. Call it from one thread only, in the same order on all ranks.
    """
    first = dist.get_global_rank(group, 0)
    sizes = torch.zeros(len(_TENSORS) + 1, dtype=torch.int64, device=device)
    if batch is not None:
        numbers = [_ABSENT if getattr(batch, name) is None else getattr(batch, name).numel() for name in _TENSORS]
        sizes.copy_(torch.tensor([*numbers, batch.window]))
    dist.broadcast(sizes, first, group=group)
    *numbers, window = sizes.tolist()
    buffer = torch.empty(sum(max(0, number) for number in numbers), dtype=torch.int64, device=device)
    if batch is not None:
        torch.cat([getattr(batch, name).reshape(-1).to(torch.int64) for name in _TENSORS
                   if getattr(batch, name) is not None], out=buffer)
    dist.broadcast(buffer, first, group=group)
    return batch if batch is not None else _unpacked(buffer, numbers, window)


def _unpacked(buffer: torch.Tensor, numbers: list[int], window: int) -> PackedBatch:
    parts = iter(torch.split(buffer, [number for number in numbers if number != _ABSENT]))
    values: dict[str, Any] = {name: None if number == _ABSENT else next(parts)
                              for name, number in zip(_TENSORS, numbers, strict=True)}
    values["cu_seqlens"] = values["cu_seqlens"].to(torch.int32)
    if values["pairs"] is not None:
        values["pairs"] = values["pairs"].view(-1, 2)
    return PackedBatch(window=window, **values)
