"""For each parameter: the ranks that hold its parts, the rank that writes it, and the transfers, on the CPU during training.

A rank holds one range of a flat part of a parameter (a ZeRO shard of a tensor-parallel part). The ranges are fixed after
the engine is built, so the ranks exchange them once, and every rank has the complete plan. A save starts by copying each
rank's own ranges, which are then sent to their writers over a separate gloo group.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.modeling.sharding import VOCABULARY, partition_axis, tensor_shard, whole_shape
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import rank, world_size

KINDS = (None, *optimizer_state.MOMENTS)
"""The saved tensors of a parameter: the weight and Adam's moments."""


@dataclass(frozen=True)
class LocalShard:
    """The part of a parameter that one rank holds: elements `start` to `start + count` of the flattened part `part`."""

    part: int
    """Tensor rank of this part of the logical parameter."""
    start: int
    count: int


@dataclass(frozen=True)
class GatherStep:
    """The rank that writes a parameter, and the ranks that send it their pieces, by parts and ranges."""

    writer: int
    sources: tuple[tuple[int, LocalShard], ...]


def writers() -> list[int]:
    """The ranks that share the writing of this rank's parameters: those of its pipeline stage."""
    return list(groups().stage_ranks)


def plan_gather(names: Sequence[str], elements: Sequence[int], held: dict[int, list[LocalShard]]) -> list[GatherStep]:
    """The gather step of each parameter; `held`: the shards of each rank that shares the writing.

    Args:
        names: logical names of the parameters.
        elements: number of elements of each parameter's part (without tensor parallelism: of the whole).
        held: by rank.
    """
    load = dict.fromkeys(held, 0)
    routes = []
    for index, (name, size) in enumerate(zip(names, elements, strict=True)):
        own = {place: holdings[index] for place, holdings in held.items() if holdings[index].count}
        most = max(holding.count for holding in own.values())
        # The rank that holds most of it receives least; among equals, the rank with least to write.
        writer = min((place for place, holding in own.items() if holding.count == most), key=lambda p: (load[p], p))
        every_part = sorted({holding.part for holding in own.values()})
        parts = every_part if partition_axis(name) is not None else [own[writer].part]
        load[writer] += size * len(parts)
        sources = [source for part in parts for source in _cover(own, part, size, writer)]
        assert sum(holding.count for _, holding in sources) == size * len(parts), f"{name} is not whole on the ranks"
        routes.append(GatherStep(writer, tuple(sources)))
    return routes


def _cover(own: dict[int, LocalShard], part: int, size: int, writer: int) -> list[tuple[int, LocalShard]]:
    """The fewest shards that complete `part`: a copy near the writer, else all shards."""
    of_part = {place: holding for place, holding in own.items() if holding.part == part}
    copies = [place for place, holding in of_part.items() if holding.count == size]
    if copies:
        nearest = min(copies, key=lambda place: (abs(place - writer), place))
        return [(nearest, of_part[nearest])]
    return sorted(of_part.items(), key=lambda source: source[1].start)


class GatherPlan:
    """This rank's part in saving an engine's weights and moments."""

    def __init__(self, engine: Engine, group: dist.ProcessGroup | None) -> None:
        """Exchange the shard ranges (collective over `group`, a gloo group of all ranks; None for a single rank)."""
        self._engine, self._group, self._shard = engine, group, tensor_shard(False)
        self._vocabulary = engine.module.encoder.config.vocab_size
        self._parameters = list(optimizer_state.named_parameters(engine))
        self.names = [name for name, _ in self._parameters]
        self._shapes = [tuple(getattr(param, "ds_shape", param.shape)) for _, param in self._parameters]
        self.routes = plan_gather(self.names, [torch.Size(shape).numel() for shape in self._shapes], self._exchange())
        self.written = [index for index, route in enumerate(self.routes) if route.writer == rank()]
        """Numbers of the parameters that this rank writes."""
        self.kept: dict[tuple[int, int], torch.Tensor] = {}
        """Host memory for the tensors of `live`; see `keep_buffers`."""

    def shape(self, index: int) -> tuple[int, ...]:
        """Logical shape of a parameter, as it is written."""
        return whole_shape(self.names[index], torch.Size(self._shapes[index]), self._shard, self._vocabulary)

    def keep_buffers(self) -> None:
        """Allocate and touch the host memory for `copy`, page-locked for CUDA, so that no save has to."""
        for kind in range(len(KINDS)):
            for index, holding in self._asked():
                self.kept[kind, index] = torch.empty(holding.count, pin_memory=torch.cuda.is_available()).zero_()

    def live(self) -> dict[tuple[int, int], torch.Tensor]:
        """The pieces that this rank writes or sends, by (kind, parameter), without copying them (not collective)."""
        return {
            (kind, index): optimizer_state.own_piece(self._engine, self._parameters[index][1], moment)[1]
            for index, _ in self._asked()
            for kind, moment in enumerate(KINDS)
        }

    def copy(self, live: dict[tuple[int, int], torch.Tensor], stream: torch.cuda.Stream | None) -> None:
        """Copy `live` to the kept buffers; `stream`: separate from the training stream, None without CUDA."""
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            for key, piece in live.items():
                self.kept[key].copy_(piece, non_blocking=True)
        if stream is not None:
            stream.synchronize()

    def send(self, copies: dict[tuple[int, int], torch.Tensor]) -> list[dist.Work]:
        """Start sending this rank's pieces to the other writers, which receive them in file order."""
        sent = []
        for kind in range(len(KINDS)):
            for index, _ in self._asked():
                if self.routes[index].writer != rank():
                    work = dist.isend(copies[kind, index], self.routes[index].writer, group=self._group)
                    assert work is not None
                    sent.append(work)
        return sent

    def whole(self, kind: int, index: int, copies: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
        """A parameter that this rank writes, whole; waits for the pieces of other ranks."""
        name, shape, sources = self.names[index], self._shapes[index], self.routes[index].sources
        if len(sources) == 1 and sources[0][0] == rank():
            parts = {sources[0][1].part: copies[kind, index]}
        else:
            parts = {holding.part: torch.empty(torch.Size(shape).numel()) for _, holding in sources}
            for place, holding in sources:
                target = parts[holding.part].narrow(0, holding.start, holding.count)
                if place == rank():
                    target.copy_(copies[kind, index])
                else:
                    dist.recv(target, place, group=self._group)
        shaped = [parts[part].view(shape) for part in sorted(parts)]
        axis = partition_axis(name)
        tensor = shaped[0] if len(shaped) == 1 or axis is None else torch.cat(shaped, dim=axis)
        return tensor.narrow(0, 0, self._vocabulary) if name in VOCABULARY else tensor

    def _asked(self) -> list[tuple[int, LocalShard]]:
        """Parameters that need this rank's piece, and the piece."""
        return [
            (index, holding)
            for index, route in enumerate(self.routes)
            for place, holding in route.sources
            if place == rank()
        ]

    def _exchange(self) -> dict[int, list[LocalShard]]:
        """The shards of each parameter that each of `writers()` holds."""
        rows = []
        for _, param in self._parameters:
            start, piece = optimizer_state.own_piece(self._engine, param, None)
            rows.append([self._shard.rank, start, piece.numel()])
        if self._group is None:
            return {rank(): [LocalShard(*row) for row in rows]}
        # Stages of a pipeline have different numbers of parameters; a collective needs equal ones.
        most = torch.tensor([len(rows)])
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._group)
        table = torch.zeros(int(most), 3, dtype=torch.int64)
        table[: len(rows)] = torch.tensor(rows).view(-1, 3)
        tables = [torch.empty_like(table) for _ in range(world_size())]
        dist.all_gather(tables, table, group=self._group)
        return {place: [LocalShard(*row) for row in tables[place][: len(rows)].tolist()] for place in writers()}
