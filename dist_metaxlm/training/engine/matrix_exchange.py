"""Gathers whole matrices from their shards and scatters the results: each matrix is computed on one rank only.

A rank holds a range of a flattened part of a matrix (a ZeRO shard of a tensor-parallel part), or all of it. The ranks of a
pipeline stage exchange these ranges once. In each update one all-to-all sends every matrix to its owner, and another sends
the owner's result back to all ranks that hold a part. The owner depends only on names, shapes and the number of ranks, and
gets the same whole matrix in every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dist_metaxlm.modeling.sharding import partition_axis
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.training.checkpointing.gather_plan import LocalShard, plan_gather

Transform = Callable[[str, torch.Tensor], torch.Tensor]
"""(logical name, whole matrix [rows, columns]) -> its replacement, of the same shape."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One parameter that is exchanged."""

    name: str
    part_shape: tuple[int, ...]
    """[rows, columns] of one tensor-parallel part."""
    piece: Callable[[], torch.Tensor]
    """This rank's piece of it, a flat view."""


class MatrixExchange:
    """Exchanges a fixed list of matrices among the ranks of this pipeline stage."""

    def __init__(
        self, matrices: Sequence[Matrix], starts: Sequence[int], device: torch.device, group: dist.ProcessGroup | None
    ) -> None:
        """Exchange the shard ranges (collective over the stage's ranks).

        Args:
            matrices: the same list on all ranks of the stage.
            starts: for each, the first element of this rank's piece in the flattened part.
            device: where matrices are computed and exchanged.
            group: the stage's ranks, of `stage_group`.
        """
        self._matrices, self._device = list(matrices), device
        self._ranks = list(groups().stage_ranks)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._group = group
        self._held = self._exchange_holdings(starts)
        names = [matrix.name for matrix in matrices]
        elements = [matrix.part_shape[0] * matrix.part_shape[1] for matrix in matrices]
        self._sources = [route.sources for route in plan_gather(names, elements, self._held)]
        self._owners = self._share_work()

    def apply(self, transform: Transform) -> None:
        """Replace every matrix by `transform` of it, in place, on all ranks that hold a part (collective)."""
        pieces = [matrix.piece() for matrix in self._matrices]
        whole = self._gather(pieces)
        changed = {index: transform(self._matrices[index].name, matrix) for index, matrix in whole.items()}
        self._scatter(pieces, changed)

    def _gather(self, pieces: list[torch.Tensor]) -> dict[int, torch.Tensor]:
        """The whole matrices that this rank owns, by number."""
        sent = [
            [
                pieces[index]
                for index in self._owned_by(rank)
                if any(place == self._rank for place, _ in self._sources[index])
            ]
            for rank in self._ranks
        ]
        expected = [
            [
                holding.count
                for index in self._owned_by(self._rank)
                for place, holding in self._sources[index]
                if place == rank
            ]
            for rank in self._ranks
        ]
        received = dict(zip(self._ranks, map(iter, self._all_to_all(sent, expected)), strict=True))
        whole = {}
        for index in self._owned_by(self._rank):
            matrix, sources = self._matrices[index], self._sources[index]
            parts: dict[int, list[torch.Tensor]] = {}
            for place, holding in sources:  # in the order of their starts
                parts.setdefault(holding.part, []).append(next(received[place]))
            shaped = [torch.cat(parts[part]).view(matrix.part_shape) for part in sorted(parts)]
            whole[index] = shaped[0] if len(shaped) == 1 else torch.cat(shaped, dim=partition_axis(matrix.name) or 0)
        return whole

    def _scatter(self, pieces: list[torch.Tensor], changed: dict[int, torch.Tensor]) -> None:
        """Send every rank of the stage its part of the owners' results."""
        sent: list[list[torch.Tensor]] = []
        for rank in self._ranks:
            own = []
            for index in self._owned_by(self._rank):
                holding = self._held[rank][index]
                if holding.count:
                    part = self._part_of(index, changed[index], holding.part).reshape(-1)
                    own.append(part.narrow(0, holding.start, holding.count))
            sent.append(own)
        expected = [
            [self._held[self._rank][i].count for i in self._owned_by(rank) if self._held[self._rank][i].count]
            for rank in self._ranks
        ]
        for rank, received in zip(self._ranks, self._all_to_all(sent, expected), strict=True):
            held = [index for index in self._owned_by(rank) if self._held[self._rank][index].count]
            for index, values in zip(held, received, strict=True):
                pieces[index].copy_(values)

    def _part_of(self, index: int, whole: torch.Tensor, part: int) -> torch.Tensor:
        axis = partition_axis(self._matrices[index].name)
        rows_or_columns = self._matrices[index].part_shape[axis or 0]
        return whole if axis is None else whole.narrow(axis, part * rows_or_columns, rows_or_columns)

    def _all_to_all(self, sent: list[list[torch.Tensor]], expected: list[list[int]]) -> list[list[torch.Tensor]]:
        """For each rank of the stage the tensors that it sent here, flat and of the sizes `expected`."""
        buffers = [
            torch.cat([piece.to(self._device) for piece in own]) if own else torch.empty(0, device=self._device)
            for own in sent
        ]
        sizes = [sum(counts) for counts in expected]
        if self._group is None and len(self._ranks) == 1:
            received = buffers[0]
        else:
            received = torch.empty(sum(sizes), device=self._device)
            dist.all_to_all_single(
                received, torch.cat(buffers), sizes, [buffer.numel() for buffer in buffers], group=self._group
            )
        by_rank = received.split(sizes)
        return [list(values.split(counts)) for values, counts in zip(by_rank, expected, strict=True)]

    def _owned_by(self, rank: int) -> Iterator[int]:
        return (index for index, owner in enumerate(self._owners) if owner == rank)

    def _share_work(self) -> list[int]:
        """An owner for each matrix: the costliest first, each to the rank with the least work so far."""
        load = dict.fromkeys(self._ranks, 0)
        owners = [0] * len(self._matrices)
        costs = []
        for index, matrix in enumerate(self._matrices):
            parts = len({holding.part for _, holding in self._sources[index]})
            rows, columns = matrix.part_shape
            costs.append(rows * columns * parts * min(rows, columns))
        for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            owners[index] = min(self._ranks, key=lambda rank: (load[rank], rank))
            load[owners[index]] += costs[index]
        return owners

    def _exchange_holdings(self, starts: Sequence[int]) -> dict[int, list[LocalShard]]:
        tensor_rank = groups().tensor_rank
        rows = [[tensor_rank, start, matrix.piece().numel()] for start, matrix in zip(starts, self._matrices, strict=True)]
        if len(self._ranks) == 1:
            return {self._ranks[0]: [LocalShard(*row) for row in rows]}
        own = torch.tensor(rows, dtype=torch.int64, device=self._device)
        tables = [torch.empty_like(own) for _ in self._ranks]
        dist.all_gather(tables, own, group=self._group)
        return {rank: [LocalShard(*row) for row in table.tolist()] for rank, table in zip(self._ranks, tables, strict=True)}


def stage_group() -> dist.ProcessGroup | None:
    """The ranks of this pipeline stage; None: all ranks.

    Collective over all ranks if there are several stages, those of a stage without matrices (only the head) too.
    """
    grid = groups()
    if grid.stages == 1:
        return None
    size = grid.data_size * grid.tensor_size
    stages = [list(range(first, first + size)) for first in range(0, grid.stages * size, size)]
    own: dist.ProcessGroup | None
    own, _ = dist.new_subgroups_by_enumeration(stages)
    return own
