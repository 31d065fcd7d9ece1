"""Rotary position embedding (arXiv 2104.09864), half-split layout: channel i rotates with channel i + D / 2.

The backward of a rotation does not need its input, so no states are saved and no halves concatenated. The reference in
PyTorch is the CPU path; the Triton kernel (rotary_triton.py) reads queries or keys directly from the product of `qkv` and
writes them packed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dist_metaxlm.kernels.context import Context
from dist_metaxlm.kernels.registry import choose, interpreted, on_device, register

Turn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""A backend of this operator: `reference_turn`."""


def rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys [T, heads, D] (any strides, channels next to each other) by tables [T, 1, D / 2]."""
    outputs: torch.Tensor = _Rotate.apply(states, cosines, sines, choose("rotate", states))
    return outputs


class _Context(Context):
    turn: Turn


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, turn: Turn) -> torch.Tensor:
        ctx.save_for_backward(cosines, sines)
        ctx.turn = turn
        return turn(states, cosines, sines, 1)

    @staticmethod
    def backward(ctx: _Context, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        cosines, sines = ctx.saved_tensors
        return ctx.turn(upstream, cosines, sines, -1), None, None, None


def reference_turn(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, direction: int) -> torch.Tensor:
    """The rotation, or with direction -1 its inverse, in PyTorch: a new tensor [T, heads, D]."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    new_first, new_second = turned.chunk(2, dim=-1)
    torch.mul(first, cosines, out=new_first).addcmul_(second, sines, value=-direction)
    torch.mul(second, cosines, out=new_second).addcmul_(first, sines, value=direction)
    return turned


def accepts(states: torch.Tensor) -> bool:
    """Whether the Triton kernel supports these: channels of a head an even power of two, at most 32-bit floating point."""
    half = states.shape[-1] // 2
    dtypes = (torch.float32, torch.bfloat16, torch.float16, *((torch.float64,) if interpreted() else ()))
    return on_device(states) and states.dtype in dtypes and 2 * half == states.shape[-1] and half & (half - 1) == 0


register("rotate", "reference", "dist_metaxlm.kernels.pointwise.rotary:reference_turn")
register("rotate", "triton", "dist_metaxlm.kernels.pointwise.rotary_triton:turn", accepts=accepts)
