"""Declarations for torch.compile; imported only during tracing, because the decorator imports torch._dynamo."""

from __future__ import annotations

import torch

from dist_metaxlm.kernels.registry import chosen


@torch.compiler.assume_constant_result
def attention_backend(device: str, dtype: torch.dtype, width: int) -> str:
    """The backend of attention for such tensors, heads of `width` channels; a constant of the compiled graph."""
    probe = torch.empty((1, 1, width), dtype=dtype, device=device)
    return chosen("attention", probe, probe, probe, None, None).backend
