"""Tiles of packed documents for attention kernels: one table per micro-batch, shared by all layers, heads and passes.

A tile is a run of at most `rows` consecutive tokens: a piece of one long document, or several whole short documents that
share it (800 documents of lognormal length, median 60: 769 tiles of 128 rows instead of 1017; median 25: 276, not 815).
Each token has a first and a last key that it attends to; documents, the sliding window and causality are such intervals, so
kernels need one kind of mask. Without causality the relation is symmetric: the same table drives queries over keys and keys
over queries. With it a second table has, for each token as a key, the interval of the queries that attend to it.

All steps are tensor operations of static shape: on a CUDA device nothing waits for the host. Grouping is greedy ("take
documents while they fit"), which is a linked list of group starts; its members are found by pointer doubling in
log2(documents) rounds instead of a walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

COLUMNS = 6
"""Of a tile: first row, end of rows, first key, end of keys, first and end of the keys visible to every row of the tile."""
Side = Literal["both", "earlier", "later"]
"""Which tokens of its document a token is related to besides itself; in causal attention `earlier` as a query and `later` as
a key."""


@dataclass(frozen=True)
class TileTable:
    """Work list of the attention kernels; all int32, on the device of the batch."""

    tiles: torch.Tensor
    """[N, 6]: see COLUMNS; widest key range first, unused entries (no rows) last. N depends on T and D alone."""
    bounds: torch.Tensor
    """[2, T]: first key that each token attends to, and the end of its keys; in a table of side `later`, where tokens are
    keys, first query and end of queries."""
    rows: int
    """Most rows of a tile."""


def tile_table(cu_seqlens: torch.Tensor, tokens: int, rows: int, local_window: int | None, side: Side = "both") -> TileTable:
    """The table for `tokens` tokens cut into documents by `cu_seqlens` [D + 1] (from 0 to `tokens`; D is at least 1).

    `local_window` counts as in `attention_pattern`: half of it on each side of a token, None for the whole document.
    Documents may be empty.
    """
    cuts = cu_seqlens.to(torch.int64)
    first_key, end_key = _bounds(cuts, tokens, local_window, side)
    first_row, end_row = _tile_rows(cuts, tokens, rows)
    # Bounds grow with the token, so union and intersection of a tile's intervals follow from its first and last row.
    last_row = (end_row - 1).clamp(min=0)
    used = end_row > first_row
    columns = [first_row, end_row, first_key[first_row], end_key[last_row], first_key[last_row], end_key[first_row]]
    tiles = torch.where(used.unsqueeze(1), torch.stack(columns, 1), 0)
    # longest tiles first, for load balance
    tiles = tiles[torch.argsort(tiles[:, 3] - tiles[:, 2], descending=True, stable=True)]
    return TileTable(tiles.to(torch.int32), torch.stack([first_key, end_key]).to(torch.int32), rows)


def most_tiles(tokens: int, documents: int, rows: int) -> int:
    """N, the maximum number of tiles of a batch with that many tokens and documents.

    Two neighbouring groups of short documents hold more than `rows` tokens together; a group between two documents longer
    than a tile may hold one token: three tiles per `rows` + 2 tokens.
    """
    return min(3 * -(-tokens // rows) + 1, tokens // rows + documents)


def _bounds(cuts: torch.Tensor, tokens: int, local_window: int | None, side: Side) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(tokens, device=cuts.device)
    document = torch.bucketize(places, cuts[1:], right=True)
    first, end = cuts[document], cuts[document + 1]
    if local_window is not None:
        first = torch.maximum(first, places - local_window // 2)
        end = torch.minimum(end, places + local_window // 2 + 1)
    return places if side == "later" else first, places + 1 if side == "earlier" else end


def _tile_rows(cuts: torch.Tensor, tokens: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First and end row of the N tiles; unused ones have both 0."""
    documents = cuts.numel() - 1
    numbers = torch.arange(documents + 1, device=cuts.device)
    # End of the group that starts with a document: after the last document that fits, or after the document itself.
    following = torch.searchsorted(cuts, cuts + rows, right=True) - 1
    following = torch.maximum(following, numbers + 1).clamp(max=documents)
    starts = _reached(following)
    lengths = torch.where(starts, cuts[following] - cuts, 0)
    ends = torch.cumsum((lengths + rows - 1) // rows, 0)
    slots = torch.arange(most_tiles(tokens, documents, rows), device=cuts.device)
    group = torch.searchsorted(ends, slots, right=True).clamp(max=documents)
    earlier = torch.where(group > 0, ends[group - 1], 0)
    first = cuts[group] + (slots - earlier) * rows
    end = torch.minimum(first + rows, cuts[following[group]])
    used = slots < ends[-1]
    return torch.where(used, first, 0), torch.where(used, end, 0)


def _reached(following: torch.Tensor) -> torch.Tensor:
    """[D + 1] bool: the numbers reached from 0 by following `following`."""
    reached = torch.zeros_like(following)
    reached[0] = 1
    jump = following
    for _ in range(following.numel().bit_length()):
        reached = reached.scatter_reduce(0, jump, reached, "amax")
        jump = jump[jump]
    return reached.bool()
