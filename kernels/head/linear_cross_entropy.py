"""Linear layer and cross-entropy in one, and its PyTorch reference, which is also the CPU path.

The [rows, vocabulary] logits exist for one chunk of rows at a time, and the gradients are computed in the forward pass
while the chunk exists: three matrix products, no recomputation. With z the logits, m their row maximum,
E = exp(z - m) and s the row sums of E, the gradients of sum_i r_i loss_i are

    d states = (r / s) * (E W) - r * W[target]        d W = E^T ((r / s) * states) - scatter(r * states at target)

so the normalised probabilities are never written, and the target's -1 is applied in the accumulator's precision
(rounding p to bf16 before subtracting one would lose the gradient of targets that are nearly certain).

With the vocabulary split over ranks (`VocabularyShard`) m, s and the target's logit are combined by two all-reduces of
[rows] per chunk. Each rank has the part of d states of its ids; one all-reduce at the end sums the parts (Megatron-LM,
arXiv 1909.08053). Without a shard the same code runs without communication.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from dist_metaxlm.kernels.context import Context
from dist_metaxlm.kernels.registry import choose, interpreted, on_device, register

CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
"""Default bytes of logits held at once: on CPU they stay near its caches, on a GPU each chunk costs a
pass over the fp32 gradient of the weight."""
MIN_CHUNK_ROWS = 256
CACHE_BYTES = 2**20
"""Logits that a CPU finishes before the next rows: they stay in its second-level cache."""


@dataclass(frozen=True)
class VocabularyShard:
    """The ids of the rows of this rank's weight and bias: `first` .. `first + rows - 1`; rows beyond are padding.

    Padding is not part of the softmax and gets no gradient. All ranks of `group` have weights of the same shape, and
    call with the same states and targets.
    """

    first: int
    rows: int
    group: dist.ProcessGroup | None
    """Process group of the ranks that hold the vocabulary together."""


@dataclass
class Gradients:
    """Gradients of the row-weighted loss sum, in the accumulator's dtype; those not requested are None."""

    states: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


def linear_cross_entropy(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    chunk_bytes: int | None = None,
    shard: VocabularyShard | None = None,
) -> torch.Tensor:
    """Negative log likelihood of `targets` [M] under softmax(states [M, H] @ weight [V, H]^T + bias [V]): [M] fp32.

    (fp64 for fp64 inputs.) `chunk_bytes` bounds the logits held at once, but no chunk has fewer than 256 rows: each
    one costs a pass over the [V, H] gradient. The gradients of the forward pass are used if the upstream gradient is
    the same for all rows, as after `.sum()`; otherwise the backward computes them again with the right row weights, at the
    cost of a second forward. With `shard`, weight and bias are this rank's part of the vocabulary,
    targets are ids of the whole one, and every rank gets the same losses and the whole gradient of `states` (collective).
    """
    device = states.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        states, weight, bias = states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    form = choose("linear_cross_entropy", states, weight)
    losses: torch.Tensor = _LinearCrossEntropy.apply(
        states, weight, bias, targets, chunk_bytes, shard, torch.is_grad_enabled(), form
    )
    return losses


def accepts(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the Triton kernels support these; the interpreter rounds bf16 wrongly, fp16 cannot hold exp(z - offset)."""
    dtypes = (torch.float32, torch.float64) if interpreted() else (torch.float32, torch.bfloat16)
    return on_device(states, weight) and states.dtype == weight.dtype and states.dtype in dtypes


register("linear_cross_entropy", "reference", "dist_metaxlm.kernels.head.linear_cross_entropy:losses_and_gradients")
register(
    "linear_cross_entropy",
    "triton",
    "dist_metaxlm.kernels.head.linear_cross_entropy_triton:losses_and_gradients",
    accepts=accepts,
)


class _Context(Context):
    gradients: Gradients | None
    form: Callable[..., tuple[torch.Tensor, Gradients]]
    wanted: tuple[bool, ...]
    chunk_bytes: int
    shard: VocabularyShard | None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk_bytes: int,
        shard: VocabularyShard | None,
        differentiable: bool,
        form: Callable[..., tuple[torch.Tensor, Gradients]],
    ) -> torch.Tensor:
        wanted = tuple(differentiable and needed for needed in ctx.needs_input_grad[:3])
        losses, ctx.gradients = form(states, weight, bias, targets, None, wanted, chunk_bytes, shard)
        ctx.save_for_backward(states, weight, bias, targets)
        ctx.form, ctx.wanted, ctx.chunk_bytes, ctx.shard = form, wanted, chunk_bytes, shard
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, bias, targets = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place below, so valid for one backward only
        factor = None
        if gradients is not None and _is_uniform(upstream):
            factor = upstream[:1]
        else:
            _, gradients = ctx.form(states, weight, bias, targets, upstream, ctx.wanted, ctx.chunk_bytes, ctx.shard)
        return (
            _finished(gradients.states, factor, states.dtype),
            _finished(gradients.weight, factor, weight.dtype),
            _finished(gradients.bias, factor, weight.dtype if bias is None else bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _finished(gradient: torch.Tensor | None, factor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """`gradient` times `factor` in `dtype`, in one pass over it."""
    if gradient is None or factor is None:
        return None if gradient is None else gradient.to(dtype)
    if gradient.dtype == dtype:
        return gradient.mul_(factor)
    return torch.mul(gradient, factor, out=torch.empty(gradient.shape, dtype=dtype, device=gradient.device))


def _is_uniform(upstream: torch.Tensor) -> bool:
    """Whether all rows have the same gradient, as far as known without a device synchronisation."""
    if upstream.numel() <= 1 or upstream.stride(0) == 0:
        return upstream.numel() > 0
    return upstream.device.type == "cpu" and bool((upstream == upstream[0]).all())


def chunk_rows(rows: int, row_bytes: int, chunk_bytes: int) -> int:
    """Rows of a chunk: as few chunks as the bound allows, all of nearly equal size."""
    most = max(MIN_CHUNK_ROWS, chunk_bytes // row_bytes)
    chunks = max(1, -(-rows // most))
    return max(1, -(-rows // chunks))


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
    """Losses [M], and the gradients of sum(row_weights * losses), row_weights None meaning all ones."""
    # Chunks are cut by the padded size, which is the same on all ranks of a shard's group: every chunk has collectives.
    exact = torch.float64 if states.dtype == torch.float64 else torch.float32
    rows, device = states.shape[0], states.device
    step = chunk_rows(rows, weight.shape[0] * exact.itemsize, chunk_bytes)
    losses = torch.empty(rows, dtype=exact, device=device)
    fill = torch.empty if rows else torch.zeros
    gradients = Gradients(
        fill(states.shape, dtype=exact, device=device) if wanted[0] else None,
        fill(weight.shape, dtype=exact, device=device) if wanted[1] else None,
        torch.zeros(weight.shape[0], dtype=exact, device=device) if wanted[2] else None,
    )
    own = weight.shape[0] if shard is None else shard.rows
    if gradients.weight is not None:
        gradients.weight[own:] = 0
    filled = Gradients(gradients.states, *(None if g is None else g[:own] for g in (gradients.weight, gradients.bias)))
    weight, bias = weight[:own], None if bias is None else bias[:own]
    buffer = torch.empty((step, own), dtype=states.dtype, device=device)
    for first in range(0, rows, step):
        chunk = slice(first, min(first + step, rows))
        logits = buffer[: chunk.stop - first]
        local, is_own = own_targets(targets[chunk], shard)
        losses[chunk], sums = _exponentials(states[chunk], weight, bias, local, is_own, logits, shard)
        weights = torch.ones_like(sums) if row_weights is None else row_weights[chunk].to(exact)
        if any(wanted):
            scales, at_target = weights / sums, weights if is_own is None else weights * is_own
            _add_gradients(filled, chunk, states[chunk], weight, local, logits, scales, at_target)
    if shard is not None and gradients.states is not None:
        dist.all_reduce(gradients.states, group=shard.group)
    return losses, gradients


def own_targets(targets: torch.Tensor, shard: VocabularyShard | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Targets [m] as rows of this rank's weight, and which of them are (None: all); other ranks' targets become row 0."""
    if shard is None:
        return targets, None
    local = targets - shard.first
    is_own = (local >= 0) & (local < shard.rows)
    return local * is_own, is_own


def _exponentials(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    is_own: torch.Tensor | None,
    out: torch.Tensor,
    shard: VocabularyShard | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [m] and row sums of exp(z - max z) [m] over the whole vocabulary; the own exponentials fill `out` [m, V]."""
    if out.device.type == "cpu" and shard is None and out.dtype in (torch.float32, torch.float64):
        torch.mm(states, weight.t(), out=out)
        sums, at_target = _exponentials_in_cache(out, bias, targets)
        return sums.log() - at_target, sums
    if bias is None:
        torch.mm(states, weight.t(), out=out)
    else:
        torch.addmm(bias, states, weight.t(), out=out)
    exact = out if out.dtype in (torch.float32, torch.float64) else out.float()
    highest = exact.amax(dim=1, keepdim=True)
    if shard is not None:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=shard.group)
    exact.sub_(highest)
    at_target = exact.gather(1, targets.unsqueeze(1)).squeeze(1)
    sums = exact.exp_().sum(dim=1)
    if exact is not out:
        out.copy_(exact)
    if shard is not None and is_own is not None:
        parts = torch.stack((sums, at_target * is_own))
        dist.all_reduce(parts, group=shard.group)
        sums, at_target = parts.unbind()
    return sums.log() - at_target, sums


def _exponentials_in_cache(
    logits: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row sums of exp(z - max z), and z - max z at the target, both [m]; logits without bias become exponentials [m, V]."""
    sums, at_target = logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape[0])
    rows = max(1, CACHE_BYTES // (logits.shape[1] * logits.element_size()))
    for first in range(0, logits.shape[0], rows):
        part = slice(first, first + rows)
        block = logits[part] if bias is None else logits[part].add_(bias)
        block.sub_(block.amax(dim=1, keepdim=True))
        torch.gather(block, 1, targets[part].unsqueeze(1), out=at_target[part].unsqueeze(1))
        torch.sum(block.exp_(), dim=1, out=sums[part])
    return sums, at_target


def _add_gradients(
    gradients: Gradients,
    chunk: slice,
    states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    exponentials: torch.Tensor,
    scales: torch.Tensor,
    at_target: torch.Tensor,
) -> None:
    """Add one chunk of rows to `gradients`.

    `exponentials` [m, V] times `scales` [m] are the row-weighted probabilities; `at_target` [m] are the row weights, 0
    if the target is another rank's.
    """
    if gradients.states is not None:
        mean_weight = torch.mm(exponentials, weight).to(scales.dtype).mul_(scales.unsqueeze(1))
        of_target = weight.index_select(0, targets).to(scales.dtype)
        gradients.states[chunk] = mean_weight.addcmul_(of_target, at_target.unsqueeze(1), value=-1)
    if gradients.weight is not None:
        scaled = (states * scales.unsqueeze(1)).to(states.dtype)
        if gradients.weight.dtype != states.dtype:
            product = torch.mm(exponentials.t(), scaled)
            gradients.weight.copy_(product) if chunk.start == 0 else gradients.weight.add_(product)
        elif chunk.start == 0:
            torch.mm(exponentials.t(), scaled, out=gradients.weight)
        else:
            gradients.weight.addmm_(exponentials.t(), scaled)
        gradients.weight.index_add_(0, targets, (states * at_target.unsqueeze(1)).to(scales.dtype), alpha=-1)
    if gradients.bias is not None:
        gradients.bias.add_(torch.mv(exponentials.t(), scales.to(exponentials.dtype)))
        gradients.bias.index_add_(0, targets, at_target, alpha=-1)
