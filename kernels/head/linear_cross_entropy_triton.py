"""Linear layer and cross-entropy over chunks of rows: three matrix products and one in-place pass over the logits.

A rank of a vocabulary shard turns its logits z [m, V] into E = exp(z - k), with its own offset k per row, while
summing them; the whole vocabulary only contributes one factor per row, exp(k - lse), so the only collective of a chunk is
an all-gather of [3, m] floats (k, sum E, target's logit), which overlaps the product E W. Without a shard the same code
runs without communication. Design: one rank's offsets need not be the row maximum; they follow it lazily, so a logit is
read once and written once (the same idea avoids rescaling in FlashAttention-4). The target's -1 is applied in
the accumulator's precision.

bf16 gradients of the weight are summed over chunks in fp32 by the matrix product itself.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
import triton
import triton.language as tl

from dist_metaxlm.kernels.head.linear_cross_entropy import Gradients, VocabularyShard, chunk_rows, own_targets

ALIGNMENT = 64
"""Rows of the logits start at multiples of this many elements, for any vocabulary: wide loads need it."""
SLACK = tl.constexpr(30.0)
"""How far a logit may exceed the offset of its row, in nats: exp(30) times any vocabulary is well within fp32's range."""


@triton.jit
def exponentials(logits, bias, targets, statistics, first, vocabulary, stride, rows,
                 HAS_BIAS: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """In place z -> exp(z + bias - k), one program per row; statistics [3, rows]: k, the row's sum, the target's logit."""
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * stride
    target = tl.load(targets + row) - first
    is_own = (target >= 0) & (target < vocabulary)
    at_target = tl.load(line + target, mask=is_own, other=0.0).to(EXACT)
    if HAS_BIAS:
        at_target += tl.load(bias + target, mask=is_own, other=0.0).to(EXACT)
    tl.debug_barrier()  # no thread overwrites the target's logit before all have read it
    offset = at_target * 0.0 - float("inf")
    total = at_target * 0.0
    for start in range(0, vocabulary, BLOCK):
        # Lines and bias are padded to `stride`, a multiple of ALIGNMENT: a mask at the end of an arbitrary vocabulary
        # would make every access of the row two bytes wide.
        columns = start + tl.arange(0, BLOCK)
        inside = columns < stride
        z = tl.load(line + columns, mask=inside, other=0.0).to(EXACT)
        if HAS_BIAS:
            z += tl.load(bias + columns, mask=inside, other=0.0).to(EXACT)
        z = tl.where(columns < vocabulary, z, -float("inf"))
        highest = tl.max(z, 0)
        if highest > offset + SLACK:
            shrink = tl.exp(offset - highest)
            tl.debug_barrier()
            for before in range(0, start, BLOCK):
                place = line + before + tl.arange(0, BLOCK)
                written = tl.load(place).to(EXACT) * shrink
                tl.store(place, written.to(logits.dtype.element_ty))
            total = total * shrink
            offset = highest
        grown = tl.exp(z - offset)
        total += tl.sum(grown, 0)
        tl.store(line + columns, grown.to(logits.dtype.element_ty), mask=inside)
    tl.store(statistics + row, offset)
    tl.store(statistics + rows + row, total)
    tl.store(statistics + 2 * rows + row, at_target)


@triton.jit
def combine(gathered, own, row_weights, losses, scales, rows, RANKS: tl.constexpr, WEIGHTED: tl.constexpr,
            BLOCK: tl.constexpr):
    """From the statistics [RANKS, 3, rows] of all ranks: losses [rows], and scales [rows] = weight * exp(k_own - lse)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    highest = tl.load(gathered + row, mask=inside, other=0.0)
    for rank in range(1, RANKS):
        highest = tl.maximum(highest, tl.load(gathered + rank * 3 * rows + row, mask=inside, other=0.0))
    total = highest * 0.0
    at_target = highest * 0.0
    for rank in range(0, RANKS):
        part = gathered + rank * 3 * rows + row
        offset = tl.load(part, mask=inside, other=0.0)
        total += tl.load(part + rows, mask=inside, other=1.0) * tl.exp(offset - highest)
        at_target += tl.load(part + 2 * rows, mask=inside, other=0.0)
    normaliser = highest + tl.log(total)
    scale = tl.exp(tl.load(gathered + own * 3 * rows + row, mask=inside, other=0.0) - normaliser)
    if WEIGHTED:
        scale *= tl.load(row_weights + row, mask=inside, other=0.0)
    tl.store(losses + row, normaliser - at_target, mask=inside)
    tl.store(scales + row, scale, mask=inside)


@triton.jit
def finish_rows(products, states, weight, targets, scales, at_target, gradient, scaled, first, vocabulary, width,
                WANT_STATES: tl.constexpr, WANT_WEIGHT: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    """gradient [m, H] = scale * (E W) - at_target * W[target], scaled [m, H] = scale * states; one program per row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(scales + row)
    if WANT_STATES:
        target = tl.load(targets + row) - first
        # The interpreter cannot mix scalar and block conditions: a target of another rank has no columns.
        held = columns < tl.where((target >= 0) & (target < vocabulary), width, 0)
        mean = tl.load(products + row * width + columns, mask=inside, other=0.0).to(EXACT)
        chosen = tl.load(weight + target * width + columns, mask=held, other=0.0).to(EXACT)
        result = mean * scale - chosen * tl.load(at_target + row)
        tl.store(gradient + row * width + columns, result, mask=inside)
    if WANT_WEIGHT:
        x = tl.load(states + row * width + columns, mask=inside, other=0.0).to(EXACT) * scale
        tl.store(scaled + row * width + columns, x.to(scaled.dtype.element_ty), mask=inside)


@triton.jit
def column_sums(exponentials, scales, sums, vocabulary, stride, rows, EXACT: tl.constexpr, ROWS: tl.constexpr,
                BLOCK: tl.constexpr):
    """sums [V] += scales^T E: the gradient of the bias except for the targets; one program per BLOCK columns."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < stride
    total = tl.zeros([BLOCK], EXACT)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        scale = tl.load(scales + row, mask=row < rows, other=0.0)
        place = row.to(tl.int64)[:, None] * stride + columns[None, :]
        e = tl.load(exponentials + place, mask=(row < rows)[:, None] & inside[None, :], other=0.0).to(EXACT)
        total += tl.sum(e * scale[:, None], 0)
    own = columns < vocabulary
    tl.store(sums + columns, tl.load(sums + columns, mask=own, other=0.0) + total, mask=own)


# The first entry of each list is used; the others are compiled ahead of time with it (`make kernels-aot`).
CONFIGURATIONS: dict[str, list[dict[str, int]]] = {
    "exponentials": [{"BLOCK": block, "num_warps": warps}
                     for block, warps in ((8192, 8), (4096, 8), (4096, 4), (16384, 16))],
    "column_sums": [{"ROWS": rows, "BLOCK": block, "num_warps": 4} for rows, block in ((16, 512), (8, 1024), (32, 256))],
}


def losses_and_gradients(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    row_weights: torch.Tensor | None,
    wanted: tuple[bool, ...],
    chunk_bytes: int,
    shard: VocabularyShard | None,
) -> tuple[torch.Tensor, Gradients]:
    """Losses [M], and the gradients of sum(row_weights * losses), row_weights None meaning all ones.

    `states` [M, H] and `weight` [V, H] in bf16 or fp32 (interpreted: fp32, fp64), `targets` [M] int64; losses and
    gradients in fp32 (fp64 for fp64 states).
    """
    exact = torch.float64 if states.dtype == torch.float64 else torch.float32
    states, weight = states.contiguous(), weight.contiguous()
    rows, device = states.shape[0], states.device
    own = weight.shape[0] if shard is None else shard.rows
    step = chunk_rows(rows, weight.shape[0] * states.dtype.itemsize, chunk_bytes)
    losses = torch.empty(rows, dtype=exact, device=device)
    gradients = Gradients(
        torch.empty(states.shape, dtype=exact, device=device) if wanted[0] else None,
        torch.empty(weight.shape, dtype=exact, device=device) if wanted[1] else None,
        torch.zeros(weight.shape[0], dtype=exact, device=device) if wanted[2] else None,
    )
    if gradients.weight is not None:
        gradients.weight[own if rows else 0:] = 0
    filled = Gradients(gradients.states, *(None if g is None else g[:own] for g in (gradients.weight, gradients.bias)))
    stride = -(-max(own, 1) // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty((step, stride), dtype=states.dtype, device=device)
    bias = None if bias is None else F.pad(bias[:own], (0, stride - own))
    for first in range(0, rows, step):
        chunk = slice(first, min(first + step, rows))
        part = None if row_weights is None else row_weights[chunk].to(exact).contiguous()
        _chunk(chunk, states, weight[:own], bias, targets, part, buffer, losses, filled, shard)
    if shard is not None and gradients.states is not None:
        dist.all_reduce(gradients.states, group=shard.group)
    return losses, gradients


def _chunk(
    chunk: slice,
    all_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    all_targets: torch.Tensor,
    row_weights: torch.Tensor | None,
    buffer: torch.Tensor,
    losses: torch.Tensor,
    gradients: Gradients,
    shard: VocabularyShard | None,
) -> None:
    """Losses of one chunk of rows; adds its part to the gradients."""
    states, targets = all_states[chunk], all_targets[chunk].contiguous()
    (count, width), own = states.shape, weight.shape[0]
    first, exact = (0 if shard is None else shard.first), EXACT[losses.dtype]
    e = buffer[:count, :own]
    torch.mm(states, weight.t(), out=e)
    statistics = torch.empty((3, count), dtype=losses.dtype, device=states.device)
    exponentials[(count,)](e, bias, targets, statistics, first, own, buffer.shape[1], count,
                           HAS_BIAS=bias is not None, EXACT=exact, **CONFIGURATIONS["exponentials"][0])
    gathered, waiting = _gather(statistics, shard)
    products = _product(e, weight, losses.dtype) if gradients.states is not None else None
    if waiting is not None:
        waiting.wait()
    scales = torch.empty(count, dtype=losses.dtype, device=states.device)
    combine[(triton.cdiv(count, 256),)](
        gathered, 0 if shard is None else dist.get_rank(shard.group), row_weights, losses[chunk], scales, count,
        RANKS=gathered.shape[0], WEIGHTED=row_weights is not None, BLOCK=256)
    if gradients.states is None and gradients.weight is None and gradients.bias is None:
        return
    local, is_own = own_targets(targets, shard)
    at_target = torch.ones_like(scales) if row_weights is None else row_weights
    at_target = at_target if is_own is None else at_target * is_own
    scaled = torch.empty_like(states) if gradients.weight is not None else None
    own_gradients = None if gradients.states is None else gradients.states[chunk]
    finish_rows[(count,)](
        products, states, weight, targets, scales, at_target, own_gradients, scaled, first, own, width,
        WANT_STATES=products is not None, WANT_WEIGHT=scaled is not None, EXACT=exact,
        BLOCK=triton.next_power_of_2(width), num_warps=4)
    if gradients.weight is not None and scaled is not None:
        _accumulate(gradients.weight, e.t(), scaled, chunk.start == 0)
        gradients.weight.index_add_(0, local, states * at_target.unsqueeze(1), alpha=-1)
    if gradients.bias is not None:
        _bias_gradient(gradients.bias, e, scales, exact)
        gradients.bias.index_add_(0, local, at_target, alpha=-1)


EXACT = {torch.float32: tl.float32, torch.float64: tl.float64}


def _gather(statistics: torch.Tensor, shard: VocabularyShard | None) -> tuple[torch.Tensor, dist.Work | None]:
    """Statistics [ranks, 3, m] of all ranks, and the work to wait for before reading them."""
    if shard is None:
        return statistics.unsqueeze(0), None
    gathered = statistics.new_empty((dist.get_world_size(shard.group), *statistics.shape))
    return gathered, dist.all_gather_into_tensor(gathered.flatten(0, 1), statistics, group=shard.group, async_op=True)


def _product(e: torch.Tensor, weight: torch.Tensor, exact: torch.dtype) -> torch.Tensor:
    """E W [m, H] in the accumulator's dtype: rounding it would lose the gradient of targets that are nearly certain."""
    return torch.mm(e, weight) if e.dtype == exact else torch.mm(e, weight, out_dtype=exact)


def _accumulate(gradient: torch.Tensor, e: torch.Tensor, scaled: torch.Tensor, is_first: bool) -> None:
    """gradient [V, H] (+)= e [V, m] scaled [m, H], summed in the gradient's dtype inside the product."""
    kind = () if e.dtype == gradient.dtype else (gradient.dtype,)
    if is_first:
        torch.mm(e, scaled, *kind, out=gradient)
    else:
        torch.addmm(gradient, e, scaled, *kind, out=gradient)


def _bias_gradient(gradient: torch.Tensor, e: torch.Tensor, scales: torch.Tensor, exact: tl.dtype) -> None:
    configuration = CONFIGURATIONS["column_sums"][0]
    column_sums[(triton.cdiv(e.shape[1], configuration["BLOCK"]),)](
        e, scales, gradient, e.shape[1], e.stride(0), e.shape[0], EXACT=exact, **configuration)
