"""Computes links from similarities between the words (or pieces) of two sentences, for many pairs at once.

Used by the evaluation of word alignment and by the labels of denoising word alignment. All shapes are fixed and all
tensors stay on the device: nothing waits for it.

Sources: SimAlign (arXiv 2004.08728, sections 3.2 and 3.3: argmax, itermax) and XLM-Align (arXiv 2106.06381, section 3.1:
optimal transport), as their released code computes them.

Shapes: B blocks, M rows, N columns. `allowed` [B, M, N] says which cells may be linked; a block may hold several pairs of
sentences if their rectangles of cells share no row or column, such as the pairs of one window.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Extraction = Literal["argmax", "itermax", "sinkhorn"]
SHARE = 0.9
"""Weight of a cell in a further round if its row or its column is already linked (SimAlign's alpha)."""
SMALLEST = 1e-6
"""Value of non-positive similarities in transport."""
SINKHORN_ITERATIONS = 2
"""XLM-Align's value."""


def cosine_similarity(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[B, M, N] in [0, 1] of states [B, M, H] and [B, N, H]: SimAlign's (cosine + 1) / 2."""
    return (F.normalize(rows, dim=-1) @ F.normalize(columns, dim=-1).transpose(-1, -2) + 1) / 2


def extract(rows: torch.Tensor, columns: torch.Tensor, allowed: torch.Tensor, how: Extraction) -> torch.Tensor:
    """[B, M, N] bool links between states [B, M, H] and [B, N, H].

    argmax, itermax: on cosines. sinkhorn: XLM-Align's aligner, the mutual best of the transport plan of inner products.
    """
    if how == "sinkhorn":
        return mutual_argmax(*sinkhorn(rows @ columns.transpose(-1, -2), allowed), allowed)
    similarity = cosine_similarity(rows, columns)
    return itermax(similarity, allowed, 1 if how == "argmax" else 2)


def mutual_argmax(by_row: torch.Tensor, by_column: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """[B, M, N] bool: cells that are the largest of their row in `by_row` and of their column in `by_column`.

    The first of equal ones counts as the largest.
    """
    return _largest(by_row, allowed, -1) & _largest(by_column, allowed, -2)


def itermax(similarity: torch.Tensor, allowed: torch.Tensor, rounds: int = 2) -> torch.Tensor:
    """[B, M, N] bool: mutual argmax, and in further rounds links for rows and columns that have none yet.

    A further round uses cells with a free row or column, at `SHARE` of their similarity if the other is linked. As in
    SimAlign, pairs with a side of less than three words, or without a free word on a side, get no further round.
    Similarities of `allowed` cells are positive.
    """
    links = mutual_argmax(similarity, similarity, allowed)
    large = allowed & (allowed.sum(-1, keepdim=True) > 2) & (allowed.sum(-2, keepdim=True) > 2)
    for _ in range(rounds - 1):
        free_row, free_column = ~links.any(-1, keepdim=True), ~links.any(-2, keepdim=True)
        # The rows of a cell's pair are those that its column may be linked with, and vice versa.
        unfinished = (allowed & free_row).any(-2, keepdim=True) & (allowed & free_column).any(-1, keepdim=True)
        weighed = torch.where(free_row & free_column, similarity, SHARE * similarity)
        links = links | mutual_argmax(weighed, weighed, large & unfinished & (free_row | free_column))
    return links


def sinkhorn(
    similarity: torch.Tensor, allowed: torch.Tensor, iterations: int = SINKHORN_ITERATIONS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The transport plan, its rows scaled last and its columns scaled last (both [B, M, N], 0 where not allowed).

    An iteration divides each column by its sum and then each row by its sum; with 0 iterations both are `similarity`,
    made positive.
    """
    by_row = torch.where(similarity > 0, similarity, SMALLEST).masked_fill(~allowed, 0.0)
    by_column, tiny = by_row, torch.finfo(similarity.dtype).tiny
    for _ in range(iterations):
        by_column = by_row / by_row.sum(-2, keepdim=True).clamp(min=tiny)
        by_row = by_column / by_column.sum(-1, keepdim=True).clamp(min=tiny)
    return by_row, by_column


def _largest(values: torch.Tensor, allowed: torch.Tensor, axis: int) -> torch.Tensor:
    best = values.masked_fill(~allowed, -torch.inf).argmax(axis, keepdim=True)
    return torch.zeros_like(allowed).scatter(axis, best, True) & allowed
