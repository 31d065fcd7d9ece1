"""Attention over packed documents in Triton: the forward kernel and the parts shared with the backward kernels.

One program processes one tile of `TILE` rows (`tiles`) and one head, and iterates over the keys in blocks of `STEP`: first
those visible to every row, unmasked, then those at the edges of documents and windows, masked (masking every block would
cost 822 instead of 508 instructions a block). Softmax is online (Milakov and Gimelshein, arXiv 1805.02867; tiles as in
FlashAttention-2, arXiv 2307.08691) in base 2, so that the scale and log2(e) are one factor.

Raw pointers only: Triton 3.9 removed block pointers. `UPCAST` converts loaded values to fp32, for the
interpreter, whose bf16 arithmetic works on the bit patterns; `ACC` is fp64 for gradient checks.
Shapes: T tokens, H heads, D channels of a head; strides of tokens and heads are free, channels are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dist_metaxlm.kernels.pointwise.dropout_triton import key_words, query_words, stays

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(matrix, stride, first, end, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
              MASKED: tl.constexpr, UPCAST: tl.constexpr):
    """[ROWS, PADDED]: rows `first`, first + 1, ... of a [T, WIDTH] matrix; zeros from row `end` on where MASKED."""
    offsets = tl.arange(0, ROWS)
    channels = tl.arange(0, PADDED)
    # 64 bits for the part that grows with the batch, 32 for the rest: one wide product per block.
    places = matrix + tl.cast(first, tl.int64) * stride + offsets[:, None] * stride + channels[None, :]
    if MASKED:
        if PADDED == WIDTH:
            rows = tl.load(places, mask=(first + offsets < end)[:, None], other=0.0)
        else:
            rows = tl.load(places, mask=(first + offsets < end)[:, None] & (channels < WIDTH)[None, :], other=0.0)
    else:
        if PADDED == WIDTH:
            rows = tl.load(places)
        else:
            rows = tl.load(places, mask=(channels < WIDTH)[None, :], other=0.0)
    if UPCAST:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def store_rows(matrix, stride, first, end, rows, ROWS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write [ROWS, PADDED] to rows `first` ... `end` - 1 of a [T, WIDTH] matrix."""
    offsets = tl.arange(0, ROWS)
    channels = tl.arange(0, PADDED)
    places = matrix + tl.cast(first, tl.int64) * stride + offsets[:, None] * stride + channels[None, :]
    kept = (first + offsets < end)[:, None] & (channels < WIDTH)[None, :]
    tl.store(places, rows.to(matrix.dtype.element_ty), mask=kept)


@triton.jit
def load_tile(tiles, number, STEP: tl.constexpr):
    """(first row, end of rows, start of unmasked blocks, their end, first key, end of keys) of a tile.

    Blocks start at the first key; the unmasked ones are within the keys visible to all rows.
    """
    entry = tiles + number * 6
    first_row = tl.load(entry)
    end_row = tl.load(entry + 1)
    first = tl.load(entry + 2)
    end = tl.load(entry + 3)
    full_first = first + tl.cdiv(tl.load(entry + 4) - first, STEP) * STEP
    full_end = full_first + tl.maximum(tl.load(entry + 5) - full_first, 0) // STEP * STEP
    return first_row, end_row, full_first, full_end, first, end


@triton.jit
def masked_blocks(first, full_first, full_end, end, STEP: tl.constexpr):
    """(blocks before the unmasked ones, all masked blocks)."""
    before = tl.cdiv(tl.minimum(full_first, end) - first, STEP)
    return before, before + tl.cdiv(tl.maximum(end - full_end, 0), STEP)


@triton.jit
def masked_start(number, before, first, full_end, STEP: tl.constexpr):
    """First key of masked block `number`."""
    return tl.where(number < before, first + number * STEP, full_end + (number - before) * STEP)


@triton.jit
def load_bounds(bounds, tokens, first, end, ROWS: tl.constexpr):
    """([ROWS], [ROWS]): first key and end of keys of tokens `first` ...; from `end` on the interval is empty."""
    places = first + tl.arange(0, ROWS)
    kept = places < end
    return tl.load(bounds + places, mask=kept, other=0), tl.load(bounds + tokens + places, mask=kept, other=0)


@triton.jit
def visible(keys, first_keys, end_keys):
    """[rows, keys] bool: whether a key is visible to a row with bounds `first_keys`, `end_keys`."""
    return (keys[None, :] >= first_keys[:, None]) & (keys[None, :] < end_keys[:, None])


@triton.jit
def dot(left, right, accumulator, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """accumulator + left @ right."""
    return tl.dot(left, right, accumulator, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _attend(mixed, total, peak, queries, keys, values, key_stride, value_stride, start, end, first_keys, end_keys,
            words, token_keys, tokens, threshold, scale_log2, TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr,
            PADDED: tl.constexpr, MASKED: tl.constexpr, DROP: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr,
            PRECISION: tl.constexpr):
    """One block of keys added to the running (unnormalised mixture, sum of weights, largest score).

    Weights are dropped after summation: dropout applies to the softmax result.
    """
    key_block = load_rows(keys, key_stride, start, end, STEP, WIDTH, PADDED, MASKED, UPCAST)
    scores = dot(queries, tl.trans(key_block), tl.zeros([TILE, STEP], ACC), ACC, PRECISION)
    if MASKED:
        scores = tl.where(visible(start + tl.arange(0, STEP), first_keys, end_keys), scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
    shift = new_peak
    if MASKED:
        # A row without a visible key so far: -inf - -inf is NaN.
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores * scale_log2 - shift[:, None])
    fade = tl.exp2(peak - shift)
    total = total * fade + tl.sum(weights, 1)
    if DROP:
        weights = tl.where(stays(words, key_words(token_keys, tokens, start, end, STEP), threshold), weights, 0.0)
    value_block = load_rows(values, value_stride, start, end, STEP, WIDTH, PADDED, MASKED, UPCAST)
    mixed = dot(weights.to(value_block.dtype), value_block, mixed * fade[:, None], ACC, PRECISION)
    return mixed, total, new_peak


@triton.jit(do_not_specialize=["salt", "first_head", "threshold"])
def attention_forward_kernel(
    queries, keys, values, mixed_out, sums_out, tiles, bounds, token_keys,
    query_stride, query_head, key_stride, key_head, value_stride, value_head, tokens, heads, scale,
    salt, first_head, threshold, factor,
    TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, DROP: tl.constexpr,
    UPCAST: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):
    """[T, H, D] three times -> mixed_out [T, H, D] contiguous, sums_out [H, T]: log2 of the sum of e ** (score * scale).

    `scale` is the natural one, 1 / sqrt(D). With DROP weights are dropped by `token_keys`, `salt` and `threshold`
    (`dropout`) and the others multiplied by `factor`. Grid: tiles * heads, the heads of a tile adjacent.
    """
    number = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    first_row, end_row, full_first, full_end, first, end = load_tile(tiles, number, STEP)
    if first_row >= end_row:
        return
    keys += head * key_head
    values += head * value_head
    rows = load_rows(queries + head * query_head, query_stride, first_row, end_row, TILE, WIDTH, PADDED, True, UPCAST)
    mixed = tl.zeros([TILE, PADDED], ACC)
    total = tl.zeros([TILE], ACC)
    peak = tl.full([TILE], float("-inf"), ACC)
    words = None
    if DROP:
        words = query_words(token_keys, first_row, end_row, first_head + head, salt, TILE)
    for start in tl.range(full_first, full_end, STEP):
        mixed, total, peak = _attend(
            mixed, total, peak, rows, keys, values, key_stride, value_stride, start, end, None, None,
            words, token_keys, tokens, threshold, scale * LOG2_E, TILE, STEP, WIDTH, PADDED, False, DROP, UPCAST, ACC,
            PRECISION)
    first_keys, end_keys = load_bounds(bounds, tokens, first_row, end_row, TILE)  # loaded late: registers are scarce
    before, masked = masked_blocks(first, full_first, full_end, end, STEP)
    for block in tl.range(0, masked):
        start = masked_start(block, before, first, full_end, STEP)
        mixed, total, peak = _attend(
            mixed, total, peak, rows, keys, values, key_stride, value_stride, start, end, first_keys, end_keys,
            words, token_keys, tokens, threshold, scale * LOG2_E, TILE, STEP, WIDTH, PADDED, True, DROP, UPCAST, ACC,
            PRECISION)
    total = tl.maximum(total, 1e-30)  # rows past the end of the tile have no keys
    mixed = mixed / total[:, None]
    if DROP:
        mixed = mixed * factor
    store_rows(mixed_out + head * WIDTH, heads * WIDTH, first_row, end_row, mixed, TILE, WIDTH, PADDED)
    places = first_row + tl.arange(0, TILE)
    tl.store(sums_out + head.to(tl.int64) * tokens + places, peak + tl.log2(total), mask=places < end_row)
