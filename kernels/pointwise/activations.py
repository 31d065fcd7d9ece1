"""GELU with its bias, and GELU with its gate (GeGLU, arXiv 2002.05202): references in PyTorch, which are the CPU path.

GELU is exact (erf). The Triton kernels (activations_triton.py) keep no intermediate result for the backward and compute
the gradient of the bias in the same pass as that of the states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dist_metaxlm.kernels.registry import choose, chosen, interpreted, on_device, register


def bias_gelu(states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(states + bias): [T, F] and [F] -> [T, F], in the dtype of `states`."""
    outputs: torch.Tensor = choose("bias_gelu", states)(states, bias)
    return outputs


def geglu(states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """gelu(states) * gate: [T, F] twice -> [T, F], in the dtype of `states`."""
    outputs: torch.Tensor = choose("geglu", states, gate)(states, gate)
    return outputs


def wants_bias_apart(states: torch.Tensor) -> bool:
    """Whether the bias costs less in `bias_gelu` than inside the product before it, whose input is `states` [T, H]."""
    return chosen("bias_gelu", states).backend != "reference"


def reference_bias_gelu(states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`bias_gelu` in PyTorch."""
    return F.gelu(states + bias)


def reference_geglu(states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`geglu` in PyTorch."""
    return F.gelu(states) * gate


def accepts(*tensors: torch.Tensor) -> bool:
    """Whether the Triton kernels support these: matrices of at most 32-bit floating point."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, *((torch.float64,) if interpreted() else ()))
    return on_device(*tensors) and all(tensor.dim() == 2 and tensor.dtype in dtypes for tensor in tensors)


for _name in ("bias_gelu", "geglu"):
    register(_name, "reference", f"dist_metaxlm.kernels.pointwise.activations:reference_{_name}")
    register(_name, "triton", f"dist_metaxlm.kernels.pointwise.activations_triton:{_name}", accepts=accepts)
