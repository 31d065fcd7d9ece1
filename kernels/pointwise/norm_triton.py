"""The operators of norm.py on the Triton kernels of norm_kernels.py, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from dist_metaxlm.kernels.context import Context
from dist_metaxlm.kernels.pointwise.dropout import DropoutMask, column_keys, keep_factor, threshold
from dist_metaxlm.kernels.pointwise.norm_kernels import CONFIGURATIONS, drop_rows, norm_backward, norm_forward

NO_DROPOUT, OF_BRANCH, OF_RESULT = 0, 1, 2
NARROW = 1024
_EXACT = {torch.float64: (torch.float64, tl.float64)}


def norm(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, mask: DropoutMask | None,
    rms: bool = False,
) -> torch.Tensor:
    """`kernels.norm.norm`."""
    outputs: torch.Tensor = _Norm.apply(states, weight, bias, eps, mask, rms)
    return outputs


def add_norm(
    branch: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float,
    mask: DropoutMask | None, rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`kernels.norm.add_norm`."""
    outputs: tuple[torch.Tensor, torch.Tensor] = _AddNorm.apply(branch, residual, weight, bias, eps, mask, rms)
    return outputs


def add(branch: torch.Tensor, residual: torch.Tensor, mask: DropoutMask) -> torch.Tensor:
    """`kernels.norm.add`."""
    outputs: torch.Tensor = _Add.apply(branch, residual, mask)
    return outputs


def embed_norm(
    tokens: torch.Tensor, table: torch.Tensor, positions: torch.Tensor | None, position_table: torch.Tensor | None,
    weight: torch.Tensor, bias: torch.Tensor | None, eps: float, mask: DropoutMask | None, rms: bool = False,
) -> torch.Tensor:
    """`kernels.norm.embed_norm`."""
    outputs: torch.Tensor = _EmbedNorm.apply(tokens, table, positions, position_table, weight, bias, eps, mask, rms)
    return outputs


class _Context(Context):
    mask: DropoutMask | None
    biased: bool
    rms: bool
    branch_dtype: torch.dtype
    """Of `_AddNorm` and `_Add` only."""
    rows: tuple[int, int]
    """Of `_EmbedNorm` only: rows of its two tables."""


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float,
                mask: DropoutMask | None, rms: bool) -> torch.Tensor:
        states = states.contiguous()
        _, normed, statistics = _forward(states, None, weight, bias, eps, mask, OF_RESULT, rms=rms)
        ctx.save_for_backward(states, weight, *statistics)
        ctx.mask, ctx.biased, ctx.rms = mask, bias is not None, rms
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _, of_states, of_weight, of_bias = _backward(ctx, upstream, None, OF_RESULT)
        return of_states, of_weight, of_bias, None, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, branch: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor,
                bias: torch.Tensor | None, eps: float, mask: DropoutMask | None, rms: bool
                ) -> tuple[torch.Tensor, torch.Tensor]:
        summed, normed, statistics = _forward(
            branch.contiguous(), residual.contiguous(), weight, bias, eps, mask, OF_BRANCH, rms=rms)
        ctx.save_for_backward(summed, weight, *statistics)
        ctx.mask, ctx.biased, ctx.rms, ctx.branch_dtype = mask, bias is not None, rms, branch.dtype
        ctx.set_materialize_grads(False)
        return summed, normed

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _Context, of_sum: torch.Tensor | None, of_normed: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        if of_normed is None:
            of_normed = torch.zeros_like(ctx.saved_tensors[0])
        of_branch, of_residual, of_weight, of_bias = _backward(ctx, of_normed, of_sum, OF_BRANCH, ctx.branch_dtype)
        return of_branch, of_residual, of_weight, of_bias, None, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, branch: torch.Tensor, residual: torch.Tensor, mask: DropoutMask) -> torch.Tensor:
        ctx.mask, ctx.branch_dtype = mask, branch.dtype
        return _forward(branch.contiguous(), residual.contiguous(), None, None, 0.0, mask, OF_BRANCH)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        upstream = upstream.contiguous()
        rows, width = upstream.shape
        of_branch = torch.empty(upstream.shape, dtype=ctx.branch_dtype, device=upstream.device)
        settings = _settings("drop_rows", upstream)
        if rows:
            drop_rows[(triton.cdiv(rows, settings["ROWS"]),)](
                upstream, of_branch, *_mask_arguments(ctx.mask, width), rows, width, **settings)
        return of_branch, upstream, None


class _EmbedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, tokens: torch.Tensor, table: torch.Tensor, positions: torch.Tensor | None,
                position_table: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor | None, eps: float,
                mask: DropoutMask | None, rms: bool) -> torch.Tensor:
        ctx.rows = table.shape[0], 0 if position_table is None else position_table.shape[0]
        positions = None if position_table is None else positions
        summed, normed, statistics = _forward(
            table.contiguous(), position_table, weight, bias, eps, mask, OF_RESULT, (tokens, positions), rms)
        ctx.save_for_backward(summed, weight, *statistics, tokens, positions)
        ctx.mask, ctx.biased, ctx.rms = mask, bias is not None, rms
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, positions = ctx.saved_tensors[4:]
        _, of_rows, of_weight, of_bias = _backward(ctx, upstream, None, OF_RESULT)
        scatter = torch.ops.aten.embedding_dense_backward
        of_table = scatter(of_rows, tokens, ctx.rows[0], -1, False) if ctx.needs_input_grad[1] else None
        of_positions = None
        if positions is not None and ctx.needs_input_grad[3]:
            of_positions = scatter(of_rows, positions, ctx.rows[1], -1, False)
        return None, of_table, None, of_positions, of_weight, of_bias, None, None, None


def _forward(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float,
    mask: DropoutMask | None, place: int, gather: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor | None, torch.Tensor]]:
    """The sum (x itself if there is no residual), its norm (empty without `weight`), and means (`rms`: none), scales [T]."""
    assert bias is None or not rms, "RMSNorm has no bias"
    rows, width = (x.shape[0] if gather is None else gather[0].shape[0]), x.shape[1]
    dtype = x.dtype if residual is None or gather is not None else residual.dtype
    fresh: dict[str, Any] = {"dtype": dtype, "device": x.device}
    summed = x if residual is None and gather is None else torch.empty((rows, width), **fresh)
    normed = torch.empty((rows, width) if weight is not None else (0,), **fresh)
    exact = _EXACT.get(dtype, (torch.float32, tl.float32))[0]
    means, scales = torch.empty((2, rows), dtype=exact, device=x.device).unbind()
    statistics = None if rms else means, scales
    settings = _settings("norm_forward", x)
    drop = NO_DROPOUT if mask is None else place
    if rows:
        norm_forward[(triton.cdiv(rows, settings["ROWS"]),)](
            x, residual, *(gather or (None, None)), weight, bias, *_mask_tensors(mask, width), summed, normed, *statistics,
            *_mask_numbers(mask), rows, width, eps, RESIDUAL=residual is not None, GATHER=gather is not None,
            BIAS=bias is not None, NORM=weight is not None, RMS=rms, DROP=drop, **settings)
    return summed, normed, statistics


def _backward(
    ctx: _Context, of_normed: torch.Tensor, of_sum: torch.Tensor | None, place: int, branch_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of branch, residual (the sum), weight and bias."""
    summed, weight, means, scales = ctx.saved_tensors[:4]
    rows, width = summed.shape
    mask, drop = ctx.mask, NO_DROPOUT if ctx.mask is None else place
    of_residual = torch.empty_like(summed)
    of_branch = torch.empty_like(summed, dtype=branch_dtype) if drop == OF_BRANCH else of_residual
    programs = _programs(summed.device)
    settings = _settings("norm_backward", summed)
    parts = torch.empty((2, programs, width), dtype=scales.dtype, device=summed.device)
    norm_backward[(programs,)](
        of_normed.contiguous(), None if of_sum is None else of_sum.contiguous(), summed, weight, *_mask_tensors(mask, width),
        means, scales, of_branch, of_residual, parts[0], parts[1], *_mask_numbers(mask), rows, width,
        UPSTREAM=of_sum is not None, BIAS=ctx.biased, RMS=ctx.rms, DROP=drop, PROGRAMS=programs, **settings)
    of_weight = parts[0].sum(0).to(weight.dtype)
    of_bias = parts[1].sum(0).to(weight.dtype) if ctx.biased else None
    return of_branch if branch_dtype is None else of_branch.to(branch_dtype), of_residual, of_weight, of_bias


def _settings(kernel: str, states: torch.Tensor) -> dict[str, int | tl.dtype]:
    """Tile and warps for rows of the width of `states`, and the dtype of the computation."""
    configuration = CONFIGURATIONS[kernel][0 if states.shape[1] <= NARROW else -1]
    return {**configuration, "BLOCK": triton.next_power_of_2(states.shape[1]),
            "EXACT": _EXACT.get(states.dtype, (torch.float32, tl.float32))[1]}


def _mask_tensors(mask: DropoutMask | None, width: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if mask is None else (mask.positions, column_keys(width, mask.positions.device))


def _mask_numbers(mask: DropoutMask | None) -> tuple[int, int, float]:
    return (0, 0, 1.0) if mask is None else (mask.salt, threshold(mask.rate), keep_factor(mask.rate))


def _mask_arguments(mask: DropoutMask | None, width: int) -> tuple[torch.Tensor | int | float | None, ...]:
    return *_mask_tensors(mask, width), *_mask_numbers(mask)


def _programs(device: torch.device) -> int:
    """Programs of the backward: two per multiprocessor, so that the partial gradients of the weight stay small."""
    if device.type != "cuda":
        return 3
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
