"""The part of each logical parameter that a tensor rank holds, and the whole from its parts.

`attention.qkv` has its rows ordered by heads, and `mlp.up` and `mlp.gate` are parameters of their own, so every part is
one contiguous slice. The vocabulary is padded with rows of zeros to a multiple of the tensor size. The padding gets no
probability and hence no gradient (modeling/head.py), so it stays zero, and checkpoints do not contain it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from dist_metaxlm.parallel.groups import groups

VOCABULARY = ("embedding.tokens.weight", "head.bias")
_BY_ROWS = (".qkv.weight", ".qkv.bias", ".up.weight", ".up.bias", ".gate.weight")
_BY_COLUMNS = (".attention.out.weight", ".mlp.down.weight")


@dataclass(frozen=True)
class TensorShard:
    """This rank's part of the model among its tensor-parallel ranks."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """Process group of the tensor ranks; None without tensor parallelism."""
    sequence: bool = False
    """Whether norms and the residual stream are sharded by tokens over the tensor ranks (sequence parallelism)."""

    def tokens(self, count: int) -> slice:
        """The tokens of `count`, a multiple of `size`, whose residual stream this rank holds."""
        if not self.sequence:
            return slice(0, count)
        assert count % self.size == 0, f"{count} tokens cannot be cut over {self.size} ranks"
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def padded(self, vocabulary: int) -> int:
        """`vocabulary` rounded up to a multiple of `size`."""
        return -(-vocabulary // self.size) * self.size

    def own_vocabulary(self, vocabulary: int) -> range:
        """The ids whose embedding this rank holds, without padding."""
        part = self.padded(vocabulary) // self.size
        return range(self.rank * part, min((self.rank + 1) * part, vocabulary))


WHOLE = TensorShard()
"""The single part of an unsharded model."""


def tensor_shard(sequence: bool) -> TensorShard:
    """This rank's shard in the current process groups."""
    grid = groups()
    return TensorShard(grid.tensor_rank, grid.tensor_size, grid.tensor, sequence) if grid.tensor_size > 1 else WHOLE


def is_block_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is a matrix of one of the encoder's blocks; Muon orthogonalises the updates of these."""
    return len(shape) == 2 and "blocks." in name


def partition_axis(name: str) -> int | None:
    """The axis along which tensor parallelism shards the logical parameter `name`; None: every rank holds all of it."""
    if name in VOCABULARY or name.endswith(_BY_ROWS):
        return 0
    return 1 if name.endswith(_BY_COLUMNS) else None


def whole_shape(name: str, part: torch.Size, shard: TensorShard, vocabulary: int) -> tuple[int, ...]:
    """Logical shape of a parameter from the shape `part` of this rank's part."""
    axis = partition_axis(name)
    if axis is None or shard.size == 1:
        return tuple(part)
    whole = list(part)
    whole[axis] = vocabulary if name in VOCABULARY else part[axis] * shard.size
    return tuple(whole)


def own_part(name: str, whole: torch.Tensor, shard: TensorShard) -> torch.Tensor:
    """This rank's part of the logical parameter `whole` (a view, unless it is padded)."""
    axis = partition_axis(name)
    if axis is None or shard.size == 1:
        return whole
    missing = -whole.shape[axis] % shard.size
    if missing:
        assert name in VOCABULARY, f"{name} {tuple(whole.shape)} cannot be cut over {shard.size} ranks"
        whole = F.pad(whole, (0, 0) * (whole.dim() - 1) + (0, missing))
    return whole.chunk(shard.size, dim=axis)[shard.rank]


def gather_whole(name: str, part: torch.Tensor, shard: TensorShard, vocabulary: int, writer: int) -> torch.Tensor | None:
    """The logical parameter on rank `writer` of the job; None on all other ranks (collective in each tensor group)."""
    if shard.size == 1:
        return part if dist.is_initialized() is False or dist.get_rank() == writer else None
    if writer not in dist.get_process_group_ranks(shard.group):
        return None
    axis, mine = partition_axis(name), dist.get_rank() == writer
    if axis is None:
        return part if mine else None
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(shard.size)] if mine else None
    dist.gather(part.contiguous(), parts, dst=writer, group=shard.group)
    if parts is None:
        return None
    whole = torch.cat(parts, dim=axis)
    return whole.narrow(0, 0, vocabulary) if name in VOCABULARY else whole


def mark(module: nn.Module, shard: TensorShard) -> None:
    """Mark parameters that differ between tensor ranks for DeepSpeed, so that the gradient norm counts the others once."""
    for name, parameter in module.named_parameters():
        if shard.size > 1:
            parameter.tensor_model_parallel = partition_axis(name) is not None  # type: ignore[attr-defined]
