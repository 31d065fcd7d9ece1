"""Attention over packed documents: the operator, and its PyTorch reference, which is also the CPU path.

The reference relies on documents never crossing a window: it runs on [W, heads, L, D] with one additive block mask for all
heads and layers of a micro-batch, on a CPU with short documents on shorter rows (short_rows.py). Of SDPA with a boolean
mask, SDPA with an additive mask and explicit matmul + softmax, SDPA with the additive mask is the fastest in forward +
backward on CPU for L 128 and 512 at head dimensions 32 and 64.
The kernels (attention_operator.py, attention_cuda.py) walk the tiles of kernels/attention/tiles.py and never build a mask.
With dropout the reference computes the softmax explicitly, since SDPA draws its masks from a generator.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels.attention.short_rows import RowTable, block_mask, collected, row_table, spread
from dist_metaxlm.kernels.attention.tiles import Side, TileTable, tile_table
from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout
from dist_metaxlm.kernels.registry import VARIABLE, choose, forced, register

BACKWARD_VARIABLE = "DIST_METAXLM_ATTENTION_BACKWARD"
BACKWARDS = ("two_pass", "atomic")
_recipe_backward = "two_pass"


@dataclass(frozen=True)
class AttentionPattern:
    """Which tokens attend to which in a micro-batch of T = W * L tokens; built once, used by every layer of its kind.

    The reference uses the mask, the kernels use the tiles; each is built at first use.
    """

    document_ids: torch.Tensor
    """[T] int64: number of the document of each token."""
    cu_seqlens: torch.Tensor
    """[D + 1] int32: first token of each document, and T."""
    window: int
    """L, tokens of a window."""
    local_window: int | None
    """Tokens a token attends over, half on each side of itself; None: its whole document."""
    dtype: torch.dtype
    """Of queries, keys and values."""
    causal: bool = False
    """Whether a token attends to none of the tokens after itself."""

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """[W, 1, L, L] additive: 0 where attention is allowed, -inf elsewhere; None: all of the window is allowed, with
        `causal` all up to the token itself.

        A token always attends to itself, so no row of the mask is empty.
        """
        windows = self.document_ids.numel() // self.window
        reaches_all = self.local_window is None or self.local_window // 2 >= self.window - 1
        # As many documents as windows means one document in each: known from the shape, without a device synchronisation.
        if reaches_all and self.cu_seqlens.numel() == windows + 1:
            return None
        return block_mask(
            self.document_ids.view(windows, self.window),
            None if reaches_all else self.local_window,
            _working_dtype(self.dtype, self.document_ids.device),
            self.causal,
        )

    @cached_property
    def rows(self) -> RowTable | None:
        """Short rows to which the CPU reference moves documents; None: they stay in their windows."""
        one_each = self.cu_seqlens.numel() == self.document_ids.numel() // self.window + 1
        if self.document_ids.device.type != "cpu" or one_each:
            return None
        return row_table(
            self.document_ids,
            self.cu_seqlens,
            self.window,
            self.local_window,
            _working_dtype(self.dtype, self.document_ids.device),
            causal=self.causal,
        )

    @cached_property
    def tiles(self) -> TileTable:
        """The tiles of all kernels: 128 rows, in fp32 (three products per product, twice the space) 32."""
        return self._tiles("earlier" if self.causal else "both")

    @cached_property
    def key_tiles(self) -> TileTable | None:
        """The tiles of keys with the queries that attend to them, for the backward pass; None: `tiles` serves both."""
        return self._tiles("later") if self.causal else None

    def _tiles(self, side: Side) -> TileTable:
        rows = 128 if self.dtype in (torch.float16, torch.bfloat16) else 32
        return tile_table(self.cu_seqlens, self.document_ids.numel(), rows, self.local_window, side)


def attention_pattern(
    document_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    window: int,
    local_window: int | None,
    dtype: torch.dtype,
    causal: bool = False,
) -> AttentionPattern:
    """The pattern for `document_ids` [T] and `cu_seqlens` [D + 1]; `dtype` is that of queries, keys and values.

    Under autocast the autocast dtype is used instead. A token attends to the tokens of its document that are at most
    `local_window // 2` away (as in ModernBERT), with `causal` only to those up to itself.
    """
    device = document_ids.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    pattern = AttentionPattern(document_ids, cu_seqlens, window, local_window, dtype, causal)
    if document_ids.is_cuda and forced() != "reference":
        _ = pattern.tiles, pattern.key_tiles  # build now, not inside a layer that may be compiled or recomputed
    return pattern


def packed_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pattern: AttentionPattern,
    dropout: AttentionDropout | None = None,
) -> torch.Tensor:
    """Softmax attention, scores divided by sqrt(D): [T, heads, D] three times -> [T, heads, D]; any strides.

    The contents of a masked key or value do not change the output: its weight is exactly zero. With `dropout` weights are
    dropped after the softmax.

    Raises:
        UserError: the forced backend does not support these.
    """
    if torch.is_autocast_enabled(queries.device.type):
        dtype = torch.get_autocast_dtype(queries.device.type)
        queries, keys, values = queries.to(dtype), keys.to(dtype), values.to(dtype)
    if dropout is not None and forced() == "cuda":
        raise UserError(
            f"attention in CUDA C++ has no dropout, and model.attention_dropout is {dropout.rate}; "
            f"set it to 0, or training.kernels and {VARIABLE} to auto or triton"
        )
    if torch.compiler.is_compiling():
        return _traced(queries, keys, values, pattern, dropout)
    outputs: torch.Tensor = choose("attention", queries, keys, values, pattern, dropout)(
        queries, keys, values, pattern, dropout
    )
    return outputs


def choose_backward(variant: str) -> None:
    """Set the recipe's `training.attention_backward`; the environment variable takes precedence."""
    global _recipe_backward
    assert variant in BACKWARDS, variant
    _recipe_backward = variant


def uses_atomics() -> bool:
    """Whether the kernels' backward adds into the queries' gradient with atomics; otherwise results are deterministic.

    Raises:
        UserError: the environment variable names no variant.
    """
    value = os.environ.get(BACKWARD_VARIABLE) or _recipe_backward
    if value not in BACKWARDS:
        raise UserError(f"{BACKWARD_VARIABLE}={value} is no variant; set it to two_pass (same bits every time) or atomic")
    return value == "atomic"


def _traced(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pattern: AttentionPattern,
    dropout: AttentionDropout | None,
) -> torch.Tensor:
    """`packed_attention` for torch.compile: queries of the device capability stay out of the graph."""
    from dist_metaxlm.kernels.tracing import attention_backend  # imports torch._dynamo (two seconds)

    backend = attention_backend(str(queries.device), queries.dtype, queries.shape[2])
    if backend == "reference":
        return reference_attention(queries, keys, values, pattern, dropout)
    if backend == "triton":
        from dist_metaxlm.kernels.attention.operator import triton_attention

        return triton_attention(queries, keys, values, pattern, dropout)
    from dist_metaxlm.kernels.attention.cuda import cuda_attention

    return cuda_attention(queries, keys, values, pattern)


def reference_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pattern: AttentionPattern,
    dropout: AttentionDropout | None = None,
) -> torch.Tensor:
    """As `packed_attention`, in PyTorch."""
    dtype, working = queries.dtype, _working_dtype(queries.dtype, queries.device)
    inputs = [tensor.to(working) for tensor in (queries, keys, values)]
    if dropout is not None:
        return _in_windows_dropped(inputs, pattern.window, pattern.mask, pattern.causal, dropout).to(dtype)
    table = None if torch.compiler.is_compiling() else pattern.rows  # built on the host
    if table is None:
        return _in_windows(inputs, pattern.window, pattern.mask, pattern.causal).to(dtype)
    parts = spread(inputs[0], inputs[1], inputs[2], table)
    mixed = [
        _in_windows(parts[3 * number : 3 * number + 3], length, mask) for number, (_, length, mask) in enumerate(table.parts)
    ]
    return collected(mixed, table).to(dtype)


def _in_windows(inputs: list[torch.Tensor], window: int, mask: torch.Tensor | None, causal: bool = False) -> torch.Tensor:
    """SDPA inside windows of `window` tokens: [T, heads, D] three times -> [T, heads, D]; a mask holds `causal` already."""
    tokens, heads, width = inputs[0].shape
    split = (tokens // window, window, heads, width)
    queries, keys, values = (tensor.view(split).transpose(1, 2) for tensor in inputs)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal and mask is None)
    return mixed.transpose(1, 2).reshape(tokens, heads, width)


def _in_windows_dropped(
    inputs: list[torch.Tensor], window: int, mask: torch.Tensor | None, causal: bool, dropout: AttentionDropout
) -> torch.Tensor:
    """`_in_windows` with explicit weights [W, heads, L, L] and dropout."""
    tokens, heads, width = inputs[0].shape
    windows = tokens // window
    queries, keys, values = (tensor.view(windows, window, heads, width).transpose(1, 2) for tensor in inputs)
    scores = queries @ keys.transpose(2, 3) / width**0.5
    if causal and mask is None:
        mask = torch.full((window, window), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    query_words = dropout.query_words(heads).view(heads, windows, window).transpose(0, 1)
    mixed = dropout.apply(weights, query_words, dropout.token_keys[1].view(windows, 1, window)) @ values
    return mixed.transpose(1, 2).reshape(tokens, heads, width)


def accepts_triton(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pattern: AttentionPattern | None,
    dropout: AttentionDropout | None,
) -> bool:
    """Whether the Triton kernels support these; in this module so that choosing the reference does not import Triton."""
    from dist_metaxlm.kernels.attention.operator import accepts

    return accepts(queries, keys, values, pattern)


def accepts_cuda(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pattern: AttentionPattern | None,
    dropout: AttentionDropout | None,
) -> bool:
    """Whether the CUDA C++ kernel is requested and supports these; it has no dropout."""
    from dist_metaxlm.kernels.attention.cuda import accepts

    return dropout is None and accepts(queries, keys, values, pattern)


def missing_cuda() -> str | None:
    """Why the CUDA C++ kernel cannot run on this machine, or None."""
    if importlib.util.find_spec("triton") is None:
        return "its backward is the Triton one, and the package triton is not installed"
    from dist_metaxlm.kernels.attention.cuda import missing

    return missing()


def _working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype attention runs in: on CPU the bf16 backward of SDPA is several times slower than the fp32 one."""
    return torch.float32 if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) else dtype


register("attention", "reference", "dist_metaxlm.kernels.attention.dispatch:reference_attention")
register("attention", "triton", "dist_metaxlm.kernels.attention.operator:triton_attention", accepts=accepts_triton)
register("attention", "cuda", "dist_metaxlm.kernels.attention.cuda:cuda_attention", missing_cuda, accepts_cuda)
