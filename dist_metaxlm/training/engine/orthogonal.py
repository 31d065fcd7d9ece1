"""Orthogonalised updates: the nearest semi-orthogonal matrix, by Newton-Schulz iteration.

Muon (https://kellerjordan.github.io/posts/muon/; arXiv 2502.16982) replaces the momentum M = U S V^T of a matrix by about
U V^T. The coefficients are those of that post: they raise small singular values fastest and bring all of them into
about [0.5, 1.5], not to exactly 1.
"""

from __future__ import annotations

import math

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPS = 1e-7


def orthogonalise(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """Newton-Schulz iteration on each matrix of a batch.

    Args:
        matrices: [..., rows, columns].
        steps: iterations; 5 is usual.

    Returns:
        The same shape and dtype; zero if a matrix is zero. CUDA devices compute in bf16, as is usual; a CPU in the
        matrices' own precision, because there bf16 is slower on most processors and its rounding would differ by layout.
    """
    a, b, c = COEFFICIENTS
    working = torch.bfloat16 if matrices.device.type == "cuda" else matrices.dtype
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(working)
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + _EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: torch.Tensor = (x.mT if tall else x).to(matrices.dtype)
    return orthogonal


def update_scale(rows: int, columns: int) -> float:
    """Factor that gives an orthogonal update the root mean square 0.2 of AdamW's usual updates (arXiv 2502.16982, 2.2)."""
    return 0.2 * math.sqrt(max(rows, columns))


def update_of(name: str, momentum: torch.Tensor, steps: int, heads: int, each_head: bool) -> torch.Tensor:
    """The update of one whole block matrix from its momentum, of the same shape.

    Args:
        name: logical name of the parameter.
        momentum: [rows, columns], of all tensor-parallel ranks together.
        steps: Newton-Schulz iterations.
        heads: attention heads; the rows of `attention.qkv` are ordered [heads, 3, D].
        each_head: whether queries, keys and values are orthogonalised head by head, or all heads of each together.
    """
    if not name.endswith(".qkv.weight"):
        return update_scale(*momentum.shape) * orthogonalise(momentum, steps)
    columns = momentum.shape[1]
    parts = momentum.view(heads, 3, -1, columns)  # [heads, 3, D, columns]
    if each_head:
        return (update_scale(parts.shape[2], columns) * orthogonalise(parts, steps)).reshape_as(momentum)
    together = parts.transpose(0, 1).reshape(3, -1, columns)  # queries, keys, values: [3, heads * D, columns]
    update = update_scale(together.shape[1], columns) * orthogonalise(together, steps)
    return update.view(3, heads, -1, columns).transpose(0, 1).reshape_as(momentum)
