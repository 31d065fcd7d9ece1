"""LayerNorm and RMSNorm fused with residual sum, counter-based dropout and embedding lookup; references in PyTorch.

The references are the CPU path. The Triton kernels (norm_triton.py) read every operand once and write every result once
in the forward and in the backward, where the gradients of weight and bias come from the same pass. Statistics are fp32
(fp64 for fp64 states) for every dtype of the states.

With `rms` every operator uses RMSNorm (Zhang and Sennrich, arXiv 1910.07467) instead of LayerNorm: a row is divided by
the root of its mean square, no mean is subtracted, and there is no bias (`bias` is None).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from dist_metaxlm.kernels.context import Context
from dist_metaxlm.kernels.pointwise.dropout import DropoutMask
from dist_metaxlm.kernels.registry import choose, interpreted, on_device, register

WIDEST = 8192
"""Maximum channels of one program of the Triton kernels."""


def norm(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    mask: DropoutMask | None = None,
    rms: bool = False,
) -> torch.Tensor:
    """dropout(LayerNorm(states)): [T, H] -> [T, H] in the dtype of `states`; `weight` and `bias` [H]."""
    outputs: torch.Tensor = choose("norm", states)(states, weight, bias, eps, mask, rms)
    return outputs


def add_norm(
    branch: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    mask: DropoutMask | None = None,
    rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum = residual + dropout(branch), and LayerNorm(sum): [T, H] twice -> [T, H] twice, in the dtype of `residual`."""
    outputs: tuple[torch.Tensor, torch.Tensor] = choose("add_norm", branch, residual)(
        branch, residual, weight, bias, eps, mask, rms
    )
    return outputs


def add(branch: torch.Tensor, residual: torch.Tensor, mask: DropoutMask | None = None) -> torch.Tensor:
    """residual + dropout(branch): [T, H] twice -> [T, H]."""
    if mask is None:
        return residual + branch
    outputs: torch.Tensor = choose("add", branch, residual)(branch, residual, mask)
    return outputs


def embed_norm(
    tokens: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor | None,
    position_table: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    mask: DropoutMask | None = None,
    rms: bool = False,
) -> torch.Tensor:
    """dropout(LayerNorm(table[tokens] + position_table[positions])): ids [T] -> [T, H] in the dtype of `table` [V, H].

    `positions` [T] and `position_table` [P, H] are both None if no positions are added.
    """
    form = choose("embed_norm", table)
    outputs: torch.Tensor = form(tokens, table, positions, position_table, weight, bias, eps, mask, rms)
    return outputs


def reference_norm(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    mask: DropoutMask | None,
    rms: bool = False,
) -> torch.Tensor:
    """`norm` in PyTorch."""
    normed = _normed(states, weight, bias, eps, rms)
    return normed if mask is None else mask.apply(normed)


def reference_add_norm(
    branch: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    mask: DropoutMask | None,
    rms: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_norm` in PyTorch."""
    summed = residual + (branch if mask is None else mask.apply(branch))
    return summed, _normed(summed, weight, bias, eps, rms)


def reference_add(branch: torch.Tensor, residual: torch.Tensor, mask: DropoutMask) -> torch.Tensor:
    """`add` in PyTorch."""
    return residual + mask.apply(branch)


def reference_embed_norm(
    tokens: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor | None,
    position_table: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    mask: DropoutMask | None,
    rms: bool = False,
) -> torch.Tensor:
    """`embed_norm` in PyTorch."""
    states = F.embedding(tokens, table)
    if positions is not None and position_table is not None:
        states = states + F.embedding(positions, position_table)
    return reference_norm(states, weight, bias, eps, mask, rms)


def _normed(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, rms: bool) -> torch.Tensor:
    if not rms:
        return F.layer_norm(states, states.shape[-1:], weight, bias, eps)
    assert bias is None, "RMSNorm has no bias"
    if states.device.type == "cpu" and states.dtype == weight.dtype and states.dtype in (torch.float32, torch.float64):
        outputs: torch.Tensor = _RmsOnCpu.apply(states, weight, eps)
        return outputs
    return F.rms_norm(states, states.shape[-1:], weight, eps)


class _RmsOnCpu(torch.autograd.Function):
    """RMSNorm that saves its input and one number per row, using torch's fused backward of LayerNorm.

    torch (2.13) composes RMSNorm from single operators on a CPU, each with a pass over the states and some with a copy.
    With n = states * scale and g = upstream * weight, LayerNorm's backward with a mean of 0 gives
    scale * (g - mean(g) - n * mean(g * n)), and RMSNorm's is the same without mean(g), which is added again.
    """

    @staticmethod
    def forward(ctx: Context, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        mean_square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square() / states.shape[-1]
        scale = (mean_square + eps).rsqrt()
        ctx.save_for_backward(states, weight, scale)
        outputs: torch.Tensor = (states * scale).mul_(weight)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, scale = ctx.saved_tensors
        of_states, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            upstream, states, states.shape[-1:], torch.zeros_like(scale), scale, weight, None, (True, True, False)
        )
        along_one = (upstream @ weight).unsqueeze(-1) / states.shape[-1]
        return of_states.addcmul_(scale, along_one), of_weight, None


def accepts(*tensors: torch.Tensor) -> bool:
    """Whether the Triton kernels support these: contiguous channels, not too many, floating point of at most 32 bits."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, *((torch.float64,) if interpreted() else ()))
    return on_device(*tensors) and all(
        tensor.dim() == 2 and tensor.shape[1] <= WIDEST and tensor.dtype in dtypes for tensor in tensors
    )


for _name in ("norm", "add_norm", "add", "embed_norm"):
    register(_name, "reference", f"dist_metaxlm.kernels.pointwise.norm:reference_{_name}")
    register(_name, "triton", f"dist_metaxlm.kernels.pointwise.norm_triton:{_name}", accepts=accepts)
