"""Rotary position embedding (arXiv 2104.09864) in the half-split layout: channel i turns together with i + D / 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of T positions, [T, 1, D / 2] each."""

    cosines: torch.Tensor
    sines: torch.Tensor


def rotary_table(positions: torch.Tensor, width: int, theta: float, dtype: torch.dtype) -> RotaryTable:
    """Table for `positions` [T] and heads of `width` channels; angles are formed in fp32, whatever `dtype` is."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions.to(torch.float32).unsqueeze(1) * (1.0 / theta**exponents)
    return RotaryTable(angles.cos().to(dtype).unsqueeze(1), angles.sin().to(dtype).unsqueeze(1))


def rotate(states: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """Turn queries or keys [T, heads, D] by their positions."""
    return _Rotate.apply(states, table.cosines, table.sines)


class _Rotate(torch.autograd.Function):
    """A rotation needs nothing of its input in the backward, so no states are kept and no halves concatenated."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turn(states, cosines, sines, 1)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _turn(upstream, cosines, sines, -1), None, None


def _turn(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, direction: int) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    turned = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    new_first, new_second = turned.chunk(2, dim=-1)
    torch.mul(first, cosines, out=new_first).addcmul_(second, sines, value=-direction)
    torch.mul(second, cosines, out=new_second).addcmul_(first, sines, value=direction)
    return turned
