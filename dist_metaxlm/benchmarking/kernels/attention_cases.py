"""Attention for `metaxlm benchmark kernels`: one document a window, documents of real lengths, local, with dropout."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from dist_metaxlm.benchmarking.kernels.cases import KernelCase, lognormal_lengths
from dist_metaxlm.benchmarking.kernels.peers import Call, made_late
from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.attention.dispatch import AttentionPattern, attention_pattern, packed_attention
from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout, token_keys

RATE = 0.1
"""Attention dropout rate of XLM-R, for the cases with dropout."""


def attention_cases(small: bool, device: torch.device) -> list[KernelCase]:
    """Cases with the head dimension 64 of every XLM-R (32 if `small`)."""
    windows, window, heads, width = (2, 64, 2, 32) if small else (128, 512, 12, 64)
    local = window // 4
    whole = [window] * windows
    short = _document_lengths(windows, window, 8 if small else 60)
    cases = [
        _case("attention, one document a window", whole, window, None, heads, width, device),
        _case("attention, documents of median length 60", short, window, None, heads, width, device),
        _case("attention, local window of 128", whole, window, local, heads, width, device),
    ]
    dropping = [
        _case("attention with dropout, one document a window", whole, window, None, heads, width, device, RATE),
        _case("attention with dropout, documents of median length 60", short, window, None, heads, width, device, RATE),
    ]
    cases[0].peers.update(_backends(window), **_varlen(whole, None, device))
    cases[1].peers.update({"SDPA on the padded batch": _padded(short, window, device)}, **_varlen(short, None, device))
    cases[2].peers.update(_varlen(whole, local, device))
    dropping[0].peers.update(_backends(window, RATE))
    dropping[1].peers.update({"SDPA on the padded batch": _padded(short, window, device, RATE)})
    if device.type == "cuda":  # on a CPU it needs a C++ compiler and half a minute
        for case, lengths, reach in zip(cases, (whole, short, whole), (None, None, local), strict=True):
            case.peers.update(_flex(lengths, window, reach, device))
        cases += _cuda_library(cases, torch.cuda.get_device_capability(device)[0] == 9)
    return cases + dropping


def _cuda_library(cases: list[KernelCase], hopper: bool) -> list[KernelCase]:
    """The same cases with the CUDA C++ forward kernels if `make kernels` has built them; they run only when forced.

    On a `hopper` that is its own kernel, timed against the portable one, which is also a separate case for its errors.
    """
    if "cuda" not in registry.operators()["attention"] or registry.implementation("attention", "cuda").available():
        return []
    from dist_metaxlm.kernels.attention.cuda import using

    def forced(call: Call, variant: str) -> Call:
        def with_library(*tensors: torch.Tensor) -> torch.Tensor:
            with registry.forcing("reference" if registry.forced() == "reference" else "cuda"), using(variant):
                outputs: torch.Tensor = call(*tensors)
                return outputs

        return with_library

    with_cuda = [
        replace(case, name=f"{case.name}, CUDA C++", call=forced(case.call, "automatic"), peers={}) for case in cases
    ]
    if hopper:
        portable = [
            replace(case, name=f"{case.name}, CUDA C++ portable", call=forced(case.call, "portable"), peers={})
            for case in cases
        ]
        for case, other in zip(with_cuda, portable, strict=True):
            case.peers["CUDA C++ portable"] = other.call
        with_cuda += portable
    return with_cuda


def _document_lengths(windows: int, window: int, median: int) -> list[int]:
    """Lengths that fill every window: lognormal, the last of a window cut."""
    rng = random.Random(5)
    return [length for _ in range(windows) for length in lognormal_lengths(rng, window, median)]


def _case(
    name: str,
    lengths: list[int],
    window: int,
    local_window: int | None,
    heads: int,
    width: int,
    device: torch.device,
    rate: float = 0.0,
) -> KernelCase:
    ids, cuts = _documents(lengths, device)
    patterns: dict[torch.dtype, AttentionPattern] = {}
    dropout = AttentionDropout(token_keys(torch.arange(sum(lengths), device=device)), 77, 0, rate) if rate else None

    def call(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        pattern = patterns.get(queries.dtype)
        if pattern is None:
            pattern = patterns[queries.dtype] = attention_pattern(ids, cuts, window, local_window, queries.dtype)
        return packed_attention(queries, keys, values, pattern, dropout)

    places = torch.arange(sum(lengths))
    bounds = torch.tensor(lengths).cumsum(0)
    ends = torch.repeat_interleave(bounds, torch.tensor(lengths))
    firsts = torch.repeat_interleave(bounds - torch.tensor(lengths), torch.tensor(lengths))
    half = len(places) if local_window is None else local_window // 2
    pairs = int((torch.minimum(ends, places + half + 1) - torch.maximum(firsts, places - half)).sum())
    shape = (len(places), heads, width)
    # Two products forward, five backward, two operations per multiplication; only unmasked pairs count.
    return KernelCase(
        name,
        "attention",
        (shape, shape, shape),
        call,
        operations=14 * pairs * heads * width,
        forward_operations=4 * pairs * heads * width,
    )


def _documents(lengths: list[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.tensor(lengths)
    cuts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
    return torch.repeat_interleave(torch.arange(len(lengths)), counts).to(device), cuts.to(device)


def _backends(window: int, rate: float = 0.0) -> dict[str, Call]:
    """SDPA with a fixed backend; documents of equal length need no mask."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def held_to(backend: SDPBackend) -> Call:
        def call(*tensors: torch.Tensor) -> torch.Tensor:
            queries, keys, values = (tensor.unflatten(0, (-1, window)).transpose(1, 2) for tensor in tensors)
            with sdpa_kernel(backend):
                mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=rate)
            return mixed.transpose(1, 2).flatten(0, 1)

        return call

    return {
        "SDPA cuDNN": held_to(SDPBackend.CUDNN_ATTENTION),
        "SDPA flash": held_to(SDPBackend.FLASH_ATTENTION),
        "SDPA efficient": held_to(SDPBackend.EFFICIENT_ATTENTION),
    }


def _padded(lengths: list[int], window: int, device: torch.device, rate: float = 0.0) -> Call:
    """SDPA on [documents, longest] with a mask over the padding; the time includes padding and unpadding."""
    ids, cuts = _documents(lengths, device)
    offsets = torch.arange(ids.numel(), device=device) - cuts.to(torch.int64)[ids]
    flat = ids * window + offsets
    mask = torch.zeros(len(lengths) * window, dtype=torch.bool, device=device).index_fill_(0, flat, True)
    mask = mask.view(len(lengths), 1, 1, window)

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        queries, keys, values = (
            tensor.new_zeros(len(lengths) * window, *tensor.shape[1:])
            .index_copy(0, flat, tensor)
            .unflatten(0, (-1, window))
            .transpose(1, 2)
            for tensor in tensors
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=rate)
        return mixed.transpose(1, 2).flatten(0, 1).index_select(0, flat)

    return call


def _varlen(lengths: list[int], local_window: int | None, device: torch.device) -> dict[str, Call]:
    """torch.nn.attention.varlen, a flash kernel over cumulative lengths; windows only if this torch supports them."""

    def make() -> Call:
        from torch.nn.attention.varlen import varlen_attn

        cuts, longest = _documents(lengths, device)[1], max(lengths)
        reach: dict[str, Any] = {} if local_window is None else {"window_size": (local_window // 2, local_window // 2)}
        return lambda queries, keys, values: varlen_attn(queries, keys, values, cuts, cuts, longest, longest, **reach)

    return {"varlen_attn": made_late(make)}


def _flex(lengths: list[int], window: int, local_window: int | None, device: torch.device) -> dict[str, Call]:
    """FlexAttention, compiled, over the whole pack with a block mask of its documents."""

    def make() -> Call:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        ids = _documents(lengths, device)[0].view(-1, window)

        def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            alike = ids[row, query] == ids[row, key]
            return alike if local_window is None else alike & ((query - key).abs() <= local_window // 2)

        mask = create_block_mask(visible, ids.shape[0], None, window, window, device=str(device))
        compiled = torch.compile(flex_attention)

        def call(*tensors: torch.Tensor) -> torch.Tensor:
            queries, keys, values = (tensor.unflatten(0, (-1, window)).transpose(1, 2) for tensor in tensors)
            return compiled(queries, keys, values, block_mask=mask).transpose(1, 2).flatten(0, 1)

        return call

    return {"FlexAttention": made_late(make)}
