"""Queries, keys and values as parts of one product, [T, heads, 3, D], and their gradients without a copy.

The gradient of a plain `unbind` is a stack: one more read and write of three times the states in every layer. The kernels'
backward writes the three gradients in the layout of the product; this module detects that and passes them on without a copy.
"""

from __future__ import annotations

import torch

from dist_metaxlm.kernels.context import Context


def parts_of(joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`joined` [T, heads, 3, D] -> queries, keys and values, views of [T, heads, D]."""
    if torch.compiler.is_compiling():  # the compiler chooses the memory layout
        return joined.unbind(2)  # type: ignore[return-value]
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _Parts.apply(joined)
    return parts


def one_matrix(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor | None:
    """The common matrix [T, 3 * heads * D] if the three are views of it as [T, heads, 3, D]; else None."""
    tokens, heads, width = queries.shape
    strides = (3 * heads * width, 3 * width, 1)
    first, storage = queries.storage_offset(), queries.untyped_storage()._cdata
    side_by_side = all(
        tensor.shape == queries.shape
        and tensor.dtype == queries.dtype
        and tensor.stride() == strides
        and tensor.storage_offset() == first + number * width
        and tensor.untyped_storage()._cdata == storage
        for number, tensor in enumerate((queries, keys, values))
    )
    return queries.as_strided((tokens, 3 * heads * width), (strides[0], 1)) if side_by_side else None


class _Context(Context):
    shape: torch.Size


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, joined: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.shape = joined.shape
        return joined.unbind(2)

    @staticmethod
    def backward(ctx: _Context, *gradients: torch.Tensor) -> torch.Tensor:
        whole = one_matrix(*gradients)
        return torch.stack(gradients, 2) if whole is None else whole.view(ctx.shape)
