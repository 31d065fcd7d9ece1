"""Rows that fit the documents, for attention's CPU path: short documents share short rows instead of whole windows.

The reference attends over [windows, L, L] and masks pairs of different documents: in a window of 128 with documents of ten
tokens only a twelfth of that work is useful. Here documents move into rows of 32, 64, ... tokens, the longest first, each
into the fullest row with enough space, else into a new row of the smallest sufficient length (best fit decreasing). Moving
is one gather in each direction; its gradient is the reverse gather, because every token has one slot.

For CPUs only: the host builds the table from the lengths, which on a GPU would need a synchronisation.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import torch

from dist_metaxlm.kernels.attention.parts import one_matrix
from dist_metaxlm.kernels.context import Context

SMALLEST = 32
"""Tokens of the shortest rows; smaller products give no gain."""
FIXED_COST, MOVING_COST = 110, 55
"""Cost of attention per slot in addition to its row length, and cost of moving a token, in units of one token of row length:
forward and backward through four layers on one Xeon core, head dimension 32, windows of 64 to 512 tokens. They predict the
sign of the gain correctly for every objective of the quickstart's phases and those windows."""


@dataclass(frozen=True)
class RowTable:
    """Slots of rows of some lengths; S is the number of slots."""

    source: torch.Tensor
    """[S] int64: token of each slot; empty slots have token 0 and attend only to themselves."""
    place: torch.Tensor
    """[T] int64: slot of each token."""
    parts: tuple[tuple[slice, int, torch.Tensor], ...]
    """By row length, ascending: slots, row length R, additive mask [rows, 1, R, R]."""


def row_table(
    document_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int,
    local_window: int | None,
    dtype: torch.dtype,
    always: bool = False,
    causal: bool = False,
) -> RowTable | None:
    """The table for documents [T] of `cu_seqlens` [D + 1] in windows of `window`; masks in `dtype`.

    None if moving costs more than it saves or gains nothing; with `always` a table is returned even then.
    """
    cuts = cu_seqlens.to(torch.int64)
    lengths = cuts.diff()
    tokens = document_ids.numel()
    rows, places = _packed(lengths.tolist(), window)
    sizes = sorted(set(rows))
    counts = {size: rows.count(size) for size in sizes}
    cost = sum(size * count * (FIXED_COST + size) for size, count in counts.items()) + MOVING_COST * tokens
    if not always and cost >= tokens * (FIXED_COST + window):
        return None
    starts, slots, parts = _starts(rows), 0, []
    ends = torch.tensor([starts[row] + offset for row, offset in places], dtype=torch.int64)
    place = torch.repeat_interleave(ends - cuts[:-1], lengths, output_size=tokens) + torch.arange(tokens)
    total = sum(size * count for size, count in counts.items())
    source = torch.zeros(total, dtype=torch.int64).index_copy_(0, place, torch.arange(tokens))
    ids = (-1 - torch.arange(total)).index_copy_(0, place, document_ids)
    for size in sizes:
        part = slice(slots, slots + size * counts[size])
        parts.append((part, size, block_mask(ids[part].view(-1, size), local_window, dtype, causal)))
        slots = part.stop
    return RowTable(source, place, tuple(parts))


def block_mask(ids: torch.Tensor, local_window: int | None, dtype: torch.dtype, causal: bool = False) -> torch.Tensor:
    """[W, 1, L, L] additive: 0 between tokens of one document (ids [W, L]) at most `local_window // 2` apart, else -inf.

    With `causal` also -inf from a token to those after it.
    """
    allowed = ids.unsqueeze(2) == ids.unsqueeze(1)
    offsets = torch.arange(ids.shape[1], device=ids.device)
    before = offsets.unsqueeze(1) - offsets.unsqueeze(0)
    if local_window is not None:
        allowed &= before.abs() <= local_window // 2
    if causal:
        allowed &= before >= 0
    mask = torch.zeros(allowed.shape, dtype=dtype, device=ids.device)
    return mask.masked_fill_(~allowed, float("-inf")).unsqueeze(1)


def spread(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: RowTable) -> list[torch.Tensor]:
    """[T, heads, D] three times -> for each part of the table three of [slots, heads, D], queries first."""
    return list(_Spread.apply(queries, keys, values, table))


def collected(parts: list[torch.Tensor], table: RowTable) -> torch.Tensor:
    """For each part of the table [slots, heads, D] -> [T, heads, D]: the inverse of `spread`."""
    outputs: torch.Tensor = _Collected.apply(table, *parts)
    return outputs


class _Context(Context):
    table: RowTable


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: RowTable
    ) -> tuple[torch.Tensor, ...]:
        ctx.table = table
        inputs = (queries, keys, values)
        shared = one_matrix(*inputs)  # one gather for all three
        moved = []
        for part, _, _ in table.parts:
            source = table.source[part]
            if shared is None:
                moved += [tensor.index_select(0, source) for tensor in inputs]
            else:
                moved += shared.index_select(0, source).view(-1, queries.shape[1], 3, queries.shape[2]).unbind(2)
        return tuple(moved)

    @staticmethod
    def backward(ctx: _Context, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(_tokens(list(upstream[number::3]), ctx.table) for number in range(3)), None


class _Collected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, table: RowTable, *parts: torch.Tensor) -> torch.Tensor:
        ctx.table = table
        return _tokens(list(parts), table)

    @staticmethod
    def backward(ctx: _Context, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        upstream = upstream.contiguous()
        # An empty slot gets the gradient of token 0: it attends only to itself, so only its own slot gets it.
        return None, *(upstream.index_select(0, ctx.table.source[part]) for part, _, _ in ctx.table.parts)


def _tokens(parts: list[torch.Tensor], table: RowTable) -> torch.Tensor:
    return (torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()).index_select(0, table.place)


def _packed(lengths: list[int], window: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Length of each row, and (row, offset in it) of each document."""
    rows: list[int] = []
    places = [(0, 0)] * len(lengths)
    rooms: list[tuple[int, int]] = []  # (free slots, row), ascending
    for document in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[document]
        index = bisect_left(rooms, (length, -1))
        if index < len(rooms):
            room, row = rooms.pop(index)
        else:
            size = SMALLEST
            while size < length:
                size *= 2
            row, room = len(rows), min(size, window)
            rows.append(room)
        places[document] = (row, rows[row] - room)
        insort(rooms, (room - length, row))
    return rows, places


def _starts(rows: list[int]) -> list[int]:
    """First slot of each row; rows of equal length are adjacent, short ones first."""
    starts, slot = [0] * len(rows), 0
    for row in sorted(range(len(rows)), key=lambda number: rows[number]):
        starts[row] = slot
        slot += rows[row]
    return starts
