"""The operators of activations.py in Triton: one tile of rows and channels per program, one read and one write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from dist_metaxlm.kernels.context import Context


@triton.jit
def normal_cdf(x):
    """Share of a standard normal below x."""
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)


@triton.jit
def gelu_slope(x):
    """Derivative of x times normal_cdf(x)."""
    return normal_cdf(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def bias_gelu_forward(states, bias, out, rows, width, EXACT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out = gelu(states + bias)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    x = tl.load(states + place, mask=mask, other=0.0).to(EXACT)
    x += tl.load(bias + column, mask=column < width, other=0.0).to(EXACT)[None, :]
    tl.store(out + place, (x * normal_cdf(x)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def bias_gelu_backward(upstream, states, bias, gradient, parts, rows, width, EXACT: tl.constexpr, ROWS: tl.constexpr,
                       BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    """gradient of `states`; parts [PROGRAMS, width] are the programs' shares of the gradient of the bias."""
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(EXACT)[None, :]
    part = tl.zeros([BLOCK], EXACT)
    for start in range(tl.program_id(0) * ROWS, rows, PROGRAMS * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        x = tl.load(states + place, mask=mask, other=0.0).to(EXACT) + shift
        dx = tl.load(upstream + place, mask=mask, other=0.0).to(EXACT) * gelu_slope(x)
        tl.store(gradient + place, dx.to(gradient.dtype.element_ty), mask=mask)
        part += tl.sum(dx, 0)
    tl.store(parts + tl.program_id(0) * width + column, part, mask=column < width)


@triton.jit
def geglu_forward(states, gate, out, count, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """out = gelu(states) * gate, element by element."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(states + place, mask=place < count, other=0.0).to(EXACT)
    g = tl.load(gate + place, mask=place < count, other=0.0).to(EXACT)
    tl.store(out + place, (x * normal_cdf(x) * g).to(out.dtype.element_ty), mask=place < count)


@triton.jit
def geglu_backward(upstream, states, gate, of_states, of_gate, count, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """Both gradients of geglu."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(upstream + place, mask=place < count, other=0.0).to(EXACT)
    x = tl.load(states + place, mask=place < count, other=0.0).to(EXACT)
    g = tl.load(gate + place, mask=place < count, other=0.0).to(EXACT)
    tl.store(of_states + place, (dy * g * gelu_slope(x)).to(of_states.dtype.element_ty), mask=place < count)
    tl.store(of_gate + place, (dy * x * normal_cdf(x)).to(of_gate.dtype.element_ty), mask=place < count)


# The first entry of each list is used.
CONFIGURATIONS: dict[str, list[dict[str, int]]] = {
    "bias_gelu_forward": [{"ROWS": rows, "BLOCK": block, "num_warps": 4}
                          for rows, block in ((4, 1024), (8, 512), (2, 1024))],
    "bias_gelu_backward": [{"ROWS": rows, "BLOCK": block, "num_warps": 4}
                           for rows, block in ((8, 256), (4, 512), (4, 256))],
    "geglu_forward": [{"BLOCK": block, "num_warps": 4} for block in (4096, 2048, 1024)],
    "geglu_backward": [{"BLOCK": block, "num_warps": 4} for block in (2048, 4096, 1024)],
}


def bias_gelu(states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`kernels.activations.bias_gelu`."""
    outputs: torch.Tensor = _BiasGelu.apply(states, bias)
    return outputs


def geglu(states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`kernels.activations.geglu`."""
    outputs: torch.Tensor = _Geglu.apply(states, gate)
    return outputs


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        states = states.contiguous()
        ctx.save_for_backward(states, bias)
        out, (rows, width) = torch.empty_like(states), states.shape
        setting = CONFIGURATIONS["bias_gelu_forward"][0]
        if rows:
            bias_gelu_forward[(triton.cdiv(rows, setting["ROWS"]), triton.cdiv(width, setting["BLOCK"]))](
                states, bias, out, rows, width, EXACT=_exact(states), **setting)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, bias = ctx.saved_tensors
        gradient, (rows, width) = torch.empty_like(states), states.shape
        setting = CONFIGURATIONS["bias_gelu_backward"][0]
        blocks = triton.cdiv(width, setting["BLOCK"])
        programs = _programs(states.device, blocks)
        exact = torch.float64 if states.dtype == torch.float64 else torch.float32
        parts = torch.empty((programs, width), dtype=exact, device=states.device)
        bias_gelu_backward[(programs, blocks)](upstream.contiguous(), states, bias, gradient, parts, rows, width,
                                               EXACT=_exact(states), PROGRAMS=programs, **setting)
        return gradient, parts.sum(0).to(bias.dtype)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        states, gate = states.contiguous(), gate.contiguous()
        ctx.save_for_backward(states, gate)
        out, setting = torch.empty_like(states), CONFIGURATIONS["geglu_forward"][0]
        if states.numel():
            geglu_forward[(triton.cdiv(states.numel(), setting["BLOCK"]),)](
                states, gate, out, states.numel(), EXACT=_exact(states), **setting)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states, gate = ctx.saved_tensors
        of_states, of_gate = torch.empty_like(states), torch.empty_like(gate)
        setting = CONFIGURATIONS["geglu_backward"][0]
        if states.numel():
            geglu_backward[(triton.cdiv(states.numel(), setting["BLOCK"]),)](
                upstream.contiguous(), states, gate, of_states, of_gate, states.numel(), EXACT=_exact(states), **setting)
        return of_states, of_gate


def _exact(states: torch.Tensor) -> tl.dtype:
    return tl.float64 if states.dtype == torch.float64 else tl.float32


def _programs(device: torch.device, blocks: int) -> int:
    """Programs along the rows, so that with `blocks` along the channels every multiprocessor has about eight."""
    if device.type != "cuda":
        return 2
    return max(1, 8 * torch.cuda.get_device_properties(device).multi_processor_count // blocks)
