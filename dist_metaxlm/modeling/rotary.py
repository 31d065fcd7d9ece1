"""Rotary position embedding (arXiv 2104.09864) in the half-split layout: channel i is rotated together with i + D / 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dist_metaxlm.kernels.pointwise import rotary as kernel


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
    """Rotate queries or keys [T, heads, D] by their positions."""
    return kernel.rotate(states, table.cosines, table.sines)
