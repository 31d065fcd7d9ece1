"""Attention as a PyTorch operator: Triton (or CUDA) forward, Triton backward, under autograd, autocast and compile.

`dist_metaxlm::attention_forward` and `attention_backward` are registered with fake implementations, so torch.compile,
activation checkpointing and opcheck treat them as any operator. This module imports Triton, so it is imported only if
the registry finds Triton.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from dist_metaxlm.kernels.attention.dispatch import AttentionPattern, uses_atomics
from dist_metaxlm.kernels.attention.triton_backward import (
    attention_backward_keys_kernel,
    attention_backward_queries_kernel,
    row_sums_kernel,
)
from dist_metaxlm.kernels.attention.triton_forward import attention_forward_kernel
from dist_metaxlm.kernels.context import Context
from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout, keep_factor, threshold
from dist_metaxlm.kernels.registry import interpreted

WIDTHS = range(8, 129, 8)
"""Channels of a head that the kernels support; other than 16, 32, 64 and 128 are padded to the next of them in registers."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled."""

    step: int
    """Keys (or queries) of a block of the inner loop; never more than a tile has rows."""
    warps: int
    stages: int
    """Depth of the software pipeline."""


def launch(
    kernel: str, width: int, dtype: torch.dtype, capability: int, dropping: bool = False, atomic: bool = False
) -> Launch:
    """For `kernel` forward, backward_keys or backward_queries on compute capability `capability` (80, 90, ...).

    Chosen ahead of time: none of these spills, none serialises wgmma (kernels/aot/attention.py checks it and lists the
    exceptions). None has been timed. `dropping`: weights are dropped, `atomic`: backward_keys adds to the queries'
    gradient too.
    """
    # From sm_120 on (GeForce RTX 50) tensor cores and shared memory are again like those of sm_86.
    narrow, hopper = padded_width(width) <= 64, 90 <= capability < 120
    if dtype in (torch.float32, torch.float64):
        if kernel == "backward_queries":
            return Launch(16, 8 if dropping or capability >= 90 else 4, 1)
        return Launch(16 if kernel == "backward_keys" and (dropping or not hopper) else 32, 4, 1)
    if kernel == "forward":
        return Launch(64 if hopper or (narrow and not dropping) else 32, 8, 2)
    if kernel == "backward_queries":
        return Launch(64 if narrow else 32, 8, 2)
    if not narrow and capability >= 120 and not dropping:
        return Launch(16, 8, 1)
    if not narrow and hopper and capability >= 100:
        return Launch(32 if dropping or atomic else 64, 8, 1 if dropping else 2)
    if dropping and hopper:  # the mask's hash needs registers, which smaller blocks or a shorter pipeline free
        return Launch((64 if narrow else 32) // (2 if atomic else 1), 8, 2 if narrow or atomic else 1)
    return Launch((64 if narrow else 32) if hopper else (32 if narrow else 16), 8, 2)


def padded_width(width: int) -> int:
    """The power of two that `width` channels are padded to."""
    return max(16, 1 << (width - 1).bit_length())


def accepts(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pattern: AttentionPattern | None) -> bool:
    """Whether the Triton kernels support these: fp16, bf16 or fp32 (fp64 in the interpreter), D 8 to 128 in eights.

    fp32 with more than 64 channels runs on the reference: its operands do not fit into registers.
    """
    if queries.shape[2] not in WIDTHS or queries.numel() == 0:
        return False
    if interpreted():
        return queries.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    fits = queries.dtype in (torch.float16, torch.bfloat16) or (queries.dtype == torch.float32 and queries.shape[2] <= 64)
    return fits and queries.is_cuda and _capability(queries) >= 80


def triton_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pattern: AttentionPattern,
    dropout: AttentionDropout | None = None,
) -> torch.Tensor:
    """As `reference_attention`: [T, H, D] three times -> [T, H, D]."""
    mask = (None, 0, 0, 0.0) if dropout is None else (dropout.token_keys, dropout.salt, dropout.first_head, dropout.rate)
    outputs: torch.Tensor = attention_forward(queries, keys, values, *table_arguments(pattern), uses_atomics(), *mask)[0]
    return outputs


def table_arguments(
    pattern: AttentionPattern,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, int]:
    """tiles, bounds, key_tiles, key_bounds and rows of a forward."""
    table, by_key = pattern.tiles, pattern.key_tiles
    later = (None, None) if by_key is None else (by_key.tiles, by_key.bounds)
    return table.tiles, table.bounds, *later, table.rows


@torch.library.custom_op("dist_metaxlm::attention_forward", mutates_args=())
def attention_forward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tiles: torch.Tensor,
    bounds: torch.Tensor,
    key_tiles: torch.Tensor | None,
    key_bounds: torch.Tensor | None,
    rows: int,
    atomic: bool,
    token_keys: torch.Tensor | None,
    salt: int,
    first_head: int,
    rate: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixture [T, H, D] contiguous and log2-sums [H, T] fp32 over the tiles of kernels/attention/tiles.py.

    `key_tiles` and `key_bounds` (a table of side `later`; none: the relation is symmetric) and `atomic`, which selects the
    variant, are for the backward of the training step. The last four are those of an `AttentionDropout`; without keys
    nothing is dropped.
    """
    queries, keys, values = (channels_together(tensor) for tensor in (queries, keys, values))
    tokens, heads, width = queries.shape
    mixed, log_sums = attention_outputs(queries)
    plan = launch("forward", width, queries.dtype, _capability(queries), token_keys is not None)
    with _on(queries):
        attention_forward_kernel[(tiles.shape[0] * heads,)](
            queries,
            keys,
            values,
            mixed,
            log_sums,
            tiles,
            bounds,
            bounds if token_keys is None else token_keys,
            *_strides(queries, keys, values),
            tokens,
            heads,
            1 / math.sqrt(width),
            *_drop_arguments(salt, first_head, rate),
            **_constants(queries, plan, rows),
            DROP=token_keys is not None,
        )
    return mixed, log_sums


@torch.library.custom_op("dist_metaxlm::attention_backward", mutates_args=())
def attention_backward(
    gradient: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mixed: torch.Tensor,
    log_sums: torch.Tensor,
    tiles: torch.Tensor,
    bounds: torch.Tensor,
    key_tiles: torch.Tensor | None,
    key_bounds: torch.Tensor | None,
    rows: int,
    atomic: bool,
    token_keys: torch.Tensor | None,
    salt: int,
    first_head: int,
    rate: float,
) -> torch.Tensor:
    """Gradients of queries, keys and values side by side, [T, H, 3, D], from that of the mixture."""
    queries, keys, values = (channels_together(tensor) for tensor in (queries, keys, values))
    gradient, mixed = gradient.contiguous(), mixed.contiguous()
    # fp32 atomics are vector instructions from sm_90 on; on older devices, on sm_120 and in fp32 the variant also spills.
    atomic = atomic and (interpreted() or (90 <= _capability(queries) < 120 and queries.dtype != torch.float32))
    tokens, heads, width = queries.shape
    joined = _side_by_side(queries)
    # Programs add to it in any order, so it is fp32 in every model dtype.
    buffer = torch.zeros(queries.shape, dtype=log_sums.dtype, device=queries.device) if atomic else joined
    row_sums = torch.empty_like(log_sums)
    by_query = (tiles, bounds)
    by_key = by_query if key_tiles is None or key_bounds is None else (key_tiles, key_bounds)
    shared = (
        bounds if token_keys is None else token_keys,
        *_strides(queries, keys, values),
        tokens,
        heads,
        1 / math.sqrt(width),
        *_drop_arguments(salt, first_head, rate),
    )
    grid = (tiles.shape[0] * heads,)
    where = (width, queries.dtype, _capability(queries), token_keys is not None)
    constants = _constants(queries, launch("backward_keys", *where, atomic), rows)
    # fmt: off
    with _on(queries):
        row_sums_kernel[(-(-tokens // 64) * heads,)](
            mixed, gradient, row_sums, tokens, heads,
            ROWS=64, WIDTH=width, **{name: constants[name] for name in ("PADDED", "UPCAST", "ACC")})
        attention_backward_keys_kernel[grid](
            queries, keys, values, gradient, log_sums, row_sums, buffer, joined, *by_key, *shared,
            **constants, ATOMIC=atomic, DROP=token_keys is not None)
        if not atomic:
            attention_backward_queries_kernel[grid](
                queries, keys, values, gradient, log_sums, row_sums, joined, *by_query, *shared,
                **_constants(queries, launch("backward_queries", *where), rows), DROP=token_keys is not None)
    # fmt: on
    if atomic:
        joined[:, :, 0].copy_(buffer)
    return joined


@attention_forward.register_fake
def _fake_forward(queries: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return attention_outputs(queries)


@attention_backward.register_fake
def _fake_backward(gradient: torch.Tensor, queries: torch.Tensor, *_: object) -> torch.Tensor:
    return _side_by_side(queries)


class _Context(Context):
    rows: int
    atomic: bool
    dropping: list[int | float]
    """salt, first_head and rate."""
    others: int
    """Arguments after queries, keys and values; none has a gradient."""


def save_for_backward(ctx: _Context, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The context of any forward with the arguments of `attention_forward`, or with those before `token_keys`."""
    *tensors, ctx.rows, ctx.atomic = inputs[:9]
    token_keys, *ctx.dropping = inputs[9:] or (None, 0, 0, 0.0)
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:], token_keys)
    ctx.mark_non_differentiable(output[1])
    ctx.others = len(inputs) - 3


def backward(ctx: _Context, gradient: torch.Tensor, _: object) -> tuple[torch.Tensor | None, ...]:
    """The backward of any forward whose context is that of `save_for_backward`."""
    *tensors, token_keys = ctx.saved_tensors
    joined = attention_backward(gradient, *tensors, ctx.rows, ctx.atomic, token_keys, *ctx.dropping)
    return (*joined.unbind(2), *[None] * ctx.others)


attention_forward.register_autograd(backward, setup_context=save_for_backward)


def attention_outputs(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Buffers for the results of a forward: mixture [T, H, D] and log2-sums [H, T]."""
    tokens, heads, _ = queries.shape
    sums = torch.float64 if queries.dtype == torch.float64 else torch.float32
    return (
        torch.empty(queries.shape, dtype=queries.dtype, device=queries.device),
        torch.empty((heads, tokens), dtype=sums, device=queries.device),
    )


def _side_by_side(queries: torch.Tensor) -> torch.Tensor:
    tokens, heads, width = queries.shape
    return torch.empty((tokens, heads, 3, width), dtype=queries.dtype, device=queries.device)


def _drop_arguments(salt: int, first_head: int, rate: float) -> tuple[int, int, int, float]:
    """salt, first_head, threshold and factor of a kernel."""
    return salt, first_head, threshold(rate), keep_factor(rate)


def channels_together(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if the channels of a head are not contiguous."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _strides(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:2])


def _constants(queries: torch.Tensor, plan: Launch, rows: int) -> dict[str, int | str | tl.dtype]:
    width = queries.shape[2]
    # Three tf32 products are as exact as one in fp32; plain fp32 products would not use tensor cores and would spill.
    precision = "tf32" if queries.is_cuda and torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    constants = {
        "TILE": rows,
        "STEP": min(plan.step, rows),
        "WIDTH": width,
        "PADDED": padded_width(width),
        "UPCAST": interpreted() and queries.dtype == torch.bfloat16,
        "ACC": tl.float64 if queries.dtype == torch.float64 else tl.float32,
        "PRECISION": "ieee" if interpreted() or queries.dtype != torch.float32 else precision,
    }
    return constants if interpreted() else {**constants, "num_warps": plan.warps, "num_stages": plan.stages}


def _capability(tensor: torch.Tensor) -> int:
    """Compute capability of the tensor's device; the interpreter counts as sm_90."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def _on(tensor: torch.Tensor) -> torch.cuda.device:
    # -1 has no effect: tensors of the interpreter are on the CPU.
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
