"""Triton kernels of norm_triton.py: rows of a residual stream, normed, dropped out, summed, looked up.

The backward pass needs sums over all rows for the weight and the bias: a fixed number of programs stride over the rows and
keep partial sums in registers, so [programs, H] is written once instead of one atomic per row (the solution of Fast-LLM
issue 499; no alternative there came near the copy rate).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dist_metaxlm.kernels.pointwise.dropout_triton import keeps


@triton.jit(do_not_specialize=["salt", "threshold"])
def norm_forward(x, residual, x_rows, residual_rows, weight, bias, positions, keys, summed, out, means, scales,
                 salt, threshold, factor, rows, width, eps,
                 RESIDUAL: tl.constexpr, GATHER: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr,
                 RMS: tl.constexpr, DROP: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """summed = residual + x and out = LayerNorm(summed), with dropout of x (DROP 1) or of the result (DROP 2).

    With GATHER the rows of x and residual are looked up by x_rows and residual_rows, and `summed` is always written;
    without residual it is written with GATHER only. RMS: RMSNorm, and no `means`.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    source = place
    if GATHER:
        source = tl.load(x_rows + row, mask=row < rows, other=0)[:, None] * width + column[None, :]
    z = tl.load(x + source, mask=mask, other=0.0).to(EXACT)
    if DROP > 0:
        stay = keeps(tl.load(positions + row, mask=row < rows, other=0),
                     tl.load(keys + column, mask=column < width, other=0), salt, threshold)
    if DROP == 1:
        z = tl.where(stay, z * factor, 0.0)
    if RESIDUAL:
        source = place
        if GATHER:
            source = tl.load(residual_rows + row, mask=row < rows, other=0)[:, None] * width + column[None, :]
        z = tl.load(residual + source, mask=mask, other=0.0).to(EXACT) + z
    if RESIDUAL or GATHER:
        tl.store(summed + place, z.to(summed.dtype.element_ty), mask=mask)
    if NORM:
        if RMS:
            centred = z
        else:
            mean = tl.sum(z, 1) / width
            centred = tl.where(mask, z - mean[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
        result = centred * scale[:, None] * tl.load(weight + column, mask=column < width, other=0.0).to(EXACT)[None, :]
        if BIAS:
            result += tl.load(bias + column, mask=column < width, other=0.0).to(EXACT)[None, :]
        if DROP == 2:
            result = tl.where(stay, result * factor, 0.0)
        tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
        if not RMS:
            tl.store(means + row, mean, mask=row < rows)
        tl.store(scales + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["salt", "threshold"])
def norm_backward(d_out, d_summed, summed, weight, positions, keys, means, scales, d_x, d_residual, weight_parts,
                  bias_parts, salt, threshold, factor, rows, width,
                  UPSTREAM: tl.constexpr, BIAS: tl.constexpr, RMS: tl.constexpr, DROP: tl.constexpr,
                  EXACT: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr):
    """d_residual = gradient of `summed`, d_summed (UPSTREAM) added; d_x is the same through the mask, with DROP 1."""
    column = tl.arange(0, BLOCK)
    gamma = tl.load(weight + column, mask=column < width, other=0.0).to(EXACT)[None, :]
    weight_part = tl.zeros([BLOCK], EXACT)
    bias_part = tl.zeros([BLOCK], EXACT)
    for start in range(tl.program_id(0) * ROWS, rows, PROGRAMS * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        dy = tl.load(d_out + place, mask=mask, other=0.0).to(EXACT)
        if DROP > 0:
            stay = keeps(tl.load(positions + row, mask=row < rows, other=0),
                         tl.load(keys + column, mask=column < width, other=0), salt, threshold)
        if DROP == 2:
            dy = tl.where(stay, dy * factor, 0.0)
        z = tl.load(summed + place, mask=mask, other=0.0).to(EXACT)
        if not RMS:
            mean = tl.load(means + row, mask=row < rows, other=0.0)
        scale = tl.load(scales + row, mask=row < rows, other=0.0)
        if RMS:
            normed = z * scale[:, None]
        else:
            normed = tl.where(mask, (z - mean[:, None]) * scale[:, None], 0.0)
        g = dy * gamma
        if not RMS:
            along_one = tl.sum(g, 1) / width
        along_normed = tl.sum(g * normed, 1) / width
        if RMS:
            dz = (g - normed * along_normed[:, None]) * scale[:, None]
        else:
            dz = (g - along_one[:, None] - normed * along_normed[:, None]) * scale[:, None]
        if UPSTREAM:
            dz += tl.load(d_summed + place, mask=mask, other=0.0).to(EXACT)
        tl.store(d_residual + place, dz.to(d_residual.dtype.element_ty), mask=mask)
        if DROP == 1:
            tl.store(d_x + place, tl.where(stay, dz * factor, 0.0).to(d_x.dtype.element_ty), mask=mask)
        weight_part += tl.sum(dy * normed, 0)
        if BIAS:
            bias_part += tl.sum(dy, 0)
    part = tl.program_id(0) * width + column
    tl.store(weight_parts + part, weight_part, mask=column < width)
    if BIAS:
        tl.store(bias_parts + part, bias_part, mask=column < width)


@triton.jit(do_not_specialize=["salt", "threshold"])
def drop_rows(x, out, positions, keys, salt, threshold, factor, rows, width,
              EXACT: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """out = dropout(x): the gradient of the branch of a residual sum."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    stay = keeps(tl.load(positions + row, mask=row < rows, other=0),
                 tl.load(keys + column, mask=column < width, other=0), salt, threshold)
    value = tl.load(x + place, mask=mask, other=0.0).to(EXACT)
    tl.store(out + place, tl.where(stay, value * factor, 0.0).to(out.dtype.element_ty), mask=mask)


# Rows of a program and its warps; the first entry of each list is used up to 1024 channels, the last above.
CONFIGURATIONS: dict[str, list[dict[str, int]]] = {
    "norm_forward": [{"ROWS": 1, "num_warps": 4}, {"ROWS": 4, "num_warps": 4}, {"ROWS": 1, "num_warps": 8}],
    "norm_backward": [{"ROWS": 1, "num_warps": 4}, {"ROWS": 2, "num_warps": 4}, {"ROWS": 1, "num_warps": 8}],
    "drop_rows": [{"ROWS": 1, "num_warps": 4}, {"ROWS": 4, "num_warps": 4}, {"ROWS": 1, "num_warps": 8}],
}
