"""Rotation of queries or keys in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# The first entry is used.
CONFIGURATIONS: dict[str, list[dict[str, int]]] = {
    "turn_heads": [{"TOKENS": tokens, "num_warps": 4} for tokens in (4, 2, 8)],
}


@triton.jit
def turn_heads(states, cosines, sines, out, tokens, heads, token_stride, head_stride, direction,
               EXACT: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr):
    """TOKENS tokens with all their heads per program; `out` [tokens, heads, 2 HALF] is packed."""
    channel = tl.arange(0, HALF)
    pair = tl.arange(0, TOKENS * HEADS)
    token = (tl.program_id(0) * TOKENS + pair // HEADS).to(tl.int64)
    head = pair % HEADS
    inside = ((token < tokens) & (head < heads))[:, None] & (channel < HALF)[None, :]
    angle = token[:, None] * HALF + channel[None, :]
    cosine = tl.load(cosines + angle, mask=inside, other=0.0).to(EXACT)
    sine = tl.load(sines + angle, mask=inside, other=0.0).to(EXACT) * direction
    source = states + (token * token_stride + head * head_stride)[:, None] + channel[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(EXACT)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(EXACT)
    target = out + ((token * heads + head) * 2 * HALF)[:, None] + channel[None, :]
    tl.store(target, (first * cosine - second * sine).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (second * cosine + first * sine).to(out.dtype.element_ty), mask=inside)


def turn(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, direction: int) -> torch.Tensor:
    """`kernels.rotary.reference_turn`."""
    if states.stride(-1) != 1:
        states = states.contiguous()
    tokens, heads, width = states.shape
    out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    setting = CONFIGURATIONS["turn_heads"][0]
    if tokens:
        turn_heads[(triton.cdiv(tokens, setting["TOKENS"]),)](
            states, cosines, sines, out, tokens, heads, states.stride(0), states.stride(1), direction,
            EXACT=tl.float64 if states.dtype == torch.float64 else tl.float32, HALF=width // 2,
            HEADS=triton.next_power_of_2(heads), **setting)
    return out
