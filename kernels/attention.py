"""Attention over packed documents: the PyTorch reference, which is also the CPU path.

Documents never cross a window, so attention runs on [W, heads, L, D] with one additive block mask for all heads and
layers of a micro-batch. Of SDPA with a boolean mask, SDPA with an additive mask and explicit matmul + softmax, SDPA
with the additive mask is the fastest in forward + backward on CPU for L 128 and 512 at head dimensions 32 and 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class AttentionPattern:
    """Who attends to whom in a micro-batch of T = W * L tokens; built once, used by every layer of its kind."""

    cu_seqlens: torch.Tensor
    """[D + 1] int32: first token of each document, and T."""
    window: int
    """L, tokens of a window."""
    local_window: int | None
    """Tokens a token attends over, half on each side of itself; None: its whole document."""
    mask: torch.Tensor | None
    """[W, 1, L, L] additive: 0 where attention is allowed, -inf elsewhere; None: everything in the window is allowed."""


def attention_pattern(
    document_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int,
    local_window: int | None,
    dtype: torch.dtype,
) -> AttentionPattern:
    """The pattern for `document_ids` [T] and `cu_seqlens` [D + 1]; `dtype` is that of queries, keys and values.

    A token attends to the tokens of its document that are at most `local_window // 2` away (as ModernBERT counts it),
    itself always among them, so no row of the mask is empty.
    """
    windows = document_ids.numel() // window
    reaches_all = local_window is None or local_window // 2 >= window - 1
    # As many documents as windows means one document in each: read off the shape, without waiting for a device.
    if reaches_all and cu_seqlens.numel() == windows + 1:
        return AttentionPattern(cu_seqlens, window, local_window, None)
    ids = document_ids.view(windows, window)
    allowed = ids.unsqueeze(2) == ids.unsqueeze(1)
    if not reaches_all:
        assert local_window is not None
        offsets = torch.arange(window, device=ids.device)
        allowed &= (offsets.unsqueeze(1) - offsets.unsqueeze(0)).abs() <= local_window // 2
    mask = torch.zeros(allowed.shape, dtype=_working_dtype(dtype, ids.device), device=ids.device)
    mask.masked_fill_(~allowed, float("-inf"))
    return AttentionPattern(cu_seqlens, window, local_window, mask.unsqueeze(1))


def packed_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pattern: AttentionPattern
) -> torch.Tensor:
    """Softmax attention, scores divided by sqrt(D): [T, heads, D] three times -> [T, heads, D]; strides may be any.

    What a masked key or value holds changes no bit of the output: its weight is exactly zero.
    """
    tokens, heads, width = queries.shape
    working = _working_dtype(queries.dtype, queries.device)
    split = (tokens // pattern.window, pattern.window, heads, width)
    mixed = F.scaled_dot_product_attention(
        queries.to(working).view(split).transpose(1, 2),
        keys.to(working).view(split).transpose(1, 2),
        values.to(working).view(split).transpose(1, 2),
        attn_mask=pattern.mask,
    )
    return mixed.transpose(1, 2).reshape(tokens, heads, width).to(queries.dtype)


def _working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype attention runs in: on CPU the bf16 backward of SDPA is several times slower than the fp32 one."""
    return torch.float32 if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) else dtype
