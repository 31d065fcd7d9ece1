"""Backward of attention over packed documents in Triton.

Three kernels over the same tiles as the forward: row sums of output times its gradient; gradients of keys and values
(a tile of keys iterates over the queries that attend to it); gradient of queries (a tile of queries iterates over its
keys). No atomics, so results are deterministic. With `ATOMIC` the second also adds its part of the queries' gradient to an
fp32 buffer and the third is not run: five products instead of seven, but the order of summation varies.
The three gradients are stored side by side, like queries, keys and values in the product they come from
(attention_parts.py).
Scores are recomputed from the saved log-sum (FlashAttention-2, arXiv 2307.08691, section 3.1.2), and with DROP the mask of
dropped weights from its hash; the row sums need no mask, because the output holds the dropped weights already.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dist_metaxlm.kernels.attention.triton_forward import (
    LOG2_E,
    dot,
    load_bounds,
    load_rows,
    load_tile,
    masked_blocks,
    masked_start,
    store_rows,
    visible,
)
from dist_metaxlm.kernels.pointwise.dropout_triton import key_words, query_words, stays


@triton.jit
def row_sums_kernel(mixed, gradient, sums_out, tokens, heads, ROWS: tl.constexpr, WIDTH: tl.constexpr,
                    PADDED: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr):
    """sums_out [H, T]: sum over channels of mixed * gradient, both [T, H, D] contiguous. Grid: ceil(T / ROWS) * heads."""
    first = tl.program_id(0) // heads * ROWS
    head = tl.program_id(0) % heads
    left = load_rows(mixed + head * WIDTH, heads * WIDTH, first, tokens, ROWS, WIDTH, PADDED, True, UPCAST)
    right = load_rows(gradient + head * WIDTH, heads * WIDTH, first, tokens, ROWS, WIDTH, PADDED, True, UPCAST)
    places = first + tl.arange(0, ROWS)
    tl.store(sums_out + head.to(tl.int64) * tokens + places, tl.sum(left.to(ACC) * right.to(ACC), 1), mask=places < tokens)


@triton.jit
def _row_statistics(log_sums, row_sums, first, end, ROWS: tl.constexpr, MASKED: tl.constexpr):
    """Log-sum and row sum of rows `first` ...; an infinite log-sum makes the weights of rows from `end` on zero."""
    places = first + tl.arange(0, ROWS)
    if MASKED:
        return (tl.load(log_sums + places, mask=places < end, other=float("inf")),
                tl.load(row_sums + places, mask=places < end, other=0.0))
    else:
        return tl.load(log_sums + places), tl.load(row_sums + places)


@triton.jit
def _into_keys(key_grad, value_grad, key_tile, value_tile, queries, query_stride, gradient, gradient_stride, query_grad,
               log_sums, row_sums, start, end, first_rows, end_rows, inside, words, token_keys, head, salt, threshold,
               factor, scale, scale_log2, TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
               MASKED: tl.constexpr, ATOMIC: tl.constexpr, DROP: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr,
               PRECISION: tl.constexpr):
    """One block of queries added to the gradients of a tile of keys and values; scores are [keys, queries] here."""
    rows = load_rows(queries, query_stride, start, end, STEP, WIDTH, PADDED, MASKED, UPCAST)
    upper = load_rows(gradient, gradient_stride, start, end, STEP, WIDTH, PADDED, MASKED, UPCAST)
    log_sum, row_sum = _row_statistics(log_sums, row_sums, start, end, STEP, MASKED)
    scores = dot(key_tile, tl.trans(rows), tl.zeros([TILE, STEP], ACC), ACC, PRECISION)
    weights = tl.exp2(scores * scale_log2 - log_sum[None, :])
    if MASKED:
        weights = tl.where(visible(start + tl.arange(0, STEP), first_rows, end_rows), weights, 0.0)
    elif ATOMIC:
        # Keys past the end of the tile: their weights are unbounded, and infinity times a zero key is NaN.
        weights = tl.where(inside[:, None], weights, 0.0)
    mixing = weights
    if DROP:
        stay = stays(words, query_words(token_keys, start, end, head, salt, STEP), threshold)
        mixing = tl.where(stay, weights, 0.0)
    value_grad = dot(mixing.to(upper.dtype), upper, value_grad, ACC, PRECISION)
    pull = dot(value_tile, tl.trans(upper), tl.zeros([TILE, STEP], ACC), ACC, PRECISION)
    if DROP:
        pull = tl.where(stay, pull * factor, 0.0)
    score_grad = (weights * (pull - row_sum[None, :])).to(rows.dtype)
    key_grad = dot(score_grad, rows, key_grad, ACC, PRECISION)
    if ATOMIC:
        part = dot(tl.trans(score_grad), key_tile, tl.zeros([STEP, PADDED], ACC), ACC, PRECISION) * scale
        offsets = tl.arange(0, STEP)
        channels = tl.arange(0, PADDED)
        block = query_grad + tl.cast(start, tl.int64) * gradient_stride
        places = block + offsets[:, None] * gradient_stride + channels[None, :]
        kept = (start + offsets < end)[:, None] & (channels < WIDTH)[None, :]
        tl.atomic_add(places, part, mask=kept, sem="relaxed")
    return key_grad, value_grad


@triton.jit(do_not_specialize=["salt", "first_head", "threshold"])
def attention_backward_keys_kernel(
    queries, keys, values, gradient, log_sums, row_sums, query_grad, joined_out, tiles, bounds, token_keys,
    query_stride, query_head, key_stride, key_head, value_stride, value_head, tokens, heads, scale,
    salt, first_head, threshold, factor,
    TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ATOMIC: tl.constexpr,
    DROP: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):
    """Gradients of keys and values, second and third in `joined_out` [T, H, 3, D]; with ATOMIC adds to query_grad [T, H, D]
    fp32. `scale`: natural."""
    number = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    first_key, end_key, full_first, full_end, first, end = load_tile(tiles, number, STEP)
    if first_key >= end_key:
        return
    contiguous = heads * WIDTH
    queries += head * query_head
    gradient += head * WIDTH
    query_grad += head * WIDTH
    log_sums += head.to(tl.int64) * tokens
    row_sums += head.to(tl.int64) * tokens
    key_tile = load_rows(keys + head * key_head, key_stride, first_key, end_key, TILE, WIDTH, PADDED, True, UPCAST)
    value_tile = load_rows(values + head * value_head, value_stride, first_key, end_key, TILE, WIDTH, PADDED, True, UPCAST)
    inside = first_key + tl.arange(0, TILE) < end_key
    key_grad = tl.zeros([TILE, PADDED], ACC)
    value_grad = tl.zeros([TILE, PADDED], ACC)
    words = None
    if DROP:
        words = key_words(token_keys, tokens, first_key, end_key, TILE)
    for start in tl.range(full_first, full_end, STEP):
        key_grad, value_grad = _into_keys(
            key_grad, value_grad, key_tile, value_tile, queries, query_stride, gradient, contiguous, query_grad,
            log_sums, row_sums, start, end, None, None, inside, words, token_keys, first_head + head, salt, threshold,
            factor, scale, scale * LOG2_E, TILE, STEP, WIDTH, PADDED, False, ATOMIC, DROP, UPCAST, ACC, PRECISION)
    # Of the queries that attend to each key: the bounds of tokens as queries where visibility is symmetric.
    first_rows, end_rows = load_bounds(bounds, tokens, first_key, end_key, TILE)
    before, masked = masked_blocks(first, full_first, full_end, end, STEP)
    for block in tl.range(0, masked):
        start = masked_start(block, before, first, full_end, STEP)
        key_grad, value_grad = _into_keys(
            key_grad, value_grad, key_tile, value_tile, queries, query_stride, gradient, contiguous, query_grad,
            log_sums, row_sums, start, end, first_rows, end_rows, inside, words, token_keys, first_head + head, salt,
            threshold, factor, scale, scale * LOG2_E, TILE, STEP, WIDTH, PADDED, True, ATOMIC, DROP, UPCAST, ACC, PRECISION)
    joined_out += head * (3 * WIDTH)
    store_rows(joined_out + WIDTH, 3 * contiguous, first_key, end_key, key_grad * scale, TILE, WIDTH, PADDED)
    if DROP:
        value_grad = value_grad * factor
    store_rows(joined_out + 2 * WIDTH, 3 * contiguous, first_key, end_key, value_grad, TILE, WIDTH, PADDED)


@triton.jit
def _into_queries(query_grad, rows, upper, keys, key_stride, values, value_stride, log_sum, row_sum, start, end,
                  first_keys, end_keys, words, token_keys, tokens, threshold, factor, scale_log2, TILE: tl.constexpr,
                  STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr, DROP: tl.constexpr,
                  UPCAST: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """One block of keys added to the gradient of a tile of queries."""
    key_block = load_rows(keys, key_stride, start, end, STEP, WIDTH, PADDED, MASKED, UPCAST)
    value_block = load_rows(values, value_stride, start, end, STEP, WIDTH, PADDED, MASKED, UPCAST)
    scores = dot(rows, tl.trans(key_block), tl.zeros([TILE, STEP], ACC), ACC, PRECISION)
    weights = tl.exp2(scores * scale_log2 - log_sum[:, None])
    if MASKED:
        weights = tl.where(visible(start + tl.arange(0, STEP), first_keys, end_keys), weights, 0.0)
    pull = dot(upper, tl.trans(value_block), tl.zeros([TILE, STEP], ACC), ACC, PRECISION)
    if DROP:
        stay = stays(words, key_words(token_keys, tokens, start, end, STEP), threshold)
        pull = tl.where(stay, pull * factor, 0.0)
    score_grad = (weights * (pull - row_sum[:, None])).to(key_block.dtype)
    return dot(score_grad, key_block, query_grad, ACC, PRECISION)


@triton.jit(do_not_specialize=["salt", "first_head", "threshold"])
def attention_backward_queries_kernel(
    queries, keys, values, gradient, log_sums, row_sums, joined_out, tiles, bounds, token_keys,
    query_stride, query_head, key_stride, key_head, value_stride, value_head, tokens, heads, scale,
    salt, first_head, threshold, factor,
    TILE: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, DROP: tl.constexpr,
    UPCAST: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):
    """Gradient of queries, first in `joined_out` [T, H, 3, D]. Grid: tiles * heads. `scale`: natural."""
    number = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    first_row, end_row, full_first, full_end, first, end = load_tile(tiles, number, STEP)
    if first_row >= end_row:
        return
    contiguous = heads * WIDTH
    keys += head * key_head
    values += head * value_head
    rows = load_rows(queries + head * query_head, query_stride, first_row, end_row, TILE, WIDTH, PADDED, True, UPCAST)
    upper = load_rows(gradient + head * WIDTH, contiguous, first_row, end_row, TILE, WIDTH, PADDED, True, UPCAST)
    statistics = head.to(tl.int64) * tokens
    log_sum, row_sum = _row_statistics(log_sums + statistics, row_sums + statistics, first_row, end_row, TILE, True)
    query_grad = tl.zeros([TILE, PADDED], ACC)
    words = None
    if DROP:
        words = query_words(token_keys, first_row, end_row, first_head + head, salt, TILE)
    for start in tl.range(full_first, full_end, STEP):
        query_grad = _into_queries(
            query_grad, rows, upper, keys, key_stride, values, value_stride, log_sum, row_sum, start, end,
            None, None, words, token_keys, tokens, threshold, factor, scale * LOG2_E, TILE, STEP, WIDTH, PADDED, False,
            DROP, UPCAST, ACC, PRECISION)
    first_keys, end_keys = load_bounds(bounds, tokens, first_row, end_row, TILE)
    before, masked = masked_blocks(first, full_first, full_end, end, STEP)
    for block in tl.range(0, masked):
        start = masked_start(block, before, first, full_end, STEP)
        query_grad = _into_queries(
            query_grad, rows, upper, keys, key_stride, values, value_stride, log_sum, row_sum, start, end,
            first_keys, end_keys, words, token_keys, tokens, threshold, factor, scale * LOG2_E, TILE, STEP, WIDTH, PADDED,
            True, DROP, UPCAST, ACC, PRECISION)
    store_rows(joined_out + head * (3 * WIDTH), 3 * contiguous, first_row, end_row, query_grad * scale, TILE, WIDTH, PADDED)
