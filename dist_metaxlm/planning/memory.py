"""Bytes a rank needs: weights, gradients, optimiser states, activations.

Model states follow the ZeRO paper (arXiv 1910.02054, section 3.1 and figure 1) for AdamW, with P parameters of the
rank's own shard of the model and N data-parallel ranks:

    bf16: weights 2 P, gradients 4 P (summed in fp32 over micro-batches), fp32 weights and two moments 12 P
    fp32: weights 4 P, gradients 4 P, two moments 8 P; ZeRO-1, ZeRO-2 and offload (DeepSpeed 0.19.8) keep a copy, 4 P
    ZeRO-1 divides the optimiser's part by N, ZeRO-2 also the gradients, ZeRO-3 also the weights.

fp16 needs what bf16 does. Half precision also needs the 2-byte gradients of one backward pass: 2 P (ZeRO-0, 1),
otherwise one bucket. Offload (arXiv 2101.06840) moves the optimiser's part to the CPU, and with ZeRO-3 also the summed
gradients.

Activations are an estimate: per token and block the tensors that the backward pass needs, with memory-linear attention
and nothing recomputed, 8 h + 2 f elements (modern: 10 h + 4 f, including rotated queries and keys). Tensor parallelism
divides 4 h (modern: 6 h) and the f part, sequence parallelism all of it. `recompute: selective` keeps the f part of only
one block at a time. `recompute: blocks` keeps the input, h, of each block that it applies to, and one such block at a time
in full. The first of a pipeline's p stages holds p micro-batches, the next p - 1, the last one. The last stage has the
head, with the gathered targets' states and one chunk of logits, and a copy of the token embedding without optimiser states.

Host memory: 12 bytes per parameter that the rank updates, divided by N at any ZeRO stage, for the copy from which
checkpoints are written. With background saving the copy is permanent and page-locked, and torch rounds each buffer up to a
power of two: at most twice as much. Otherwise it exists only during a save. Offloaded states are in host memory too.

Before that, at the start, the weights are drawn in fp32 on the host: one parameter at a time, whole, then this rank's part
in the training precision (modeling/initialisation.py). A stage of a pipeline, or a model whose objectives need all of it, is
whole in fp32 on the host first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dist_metaxlm.planning.checkpoint_size import SAVED_BYTES
from dist_metaxlm.planning.parameters import largest_matrix, stage_parameters
from dist_metaxlm.planning.stages import Stage
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.schema import ModelConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements of DeepSpeed's reduce and all-gather buckets, as in ds_configs/."""
HEAD_CHUNK_BYTES = 2 * 10**9
"""Allowance for the logits that the head holds at once, in bytes; the kernels use no larger chunk."""
LIVE_PARAMETERS = 1_000_000_000
"""ZeRO-3: gathered parameters that DeepSpeed keeps at most (its default stage3_max_live_parameters)."""
PINNED_ROUNDING = 2
"""Largest ratio of a page-locked buffer's size to the requested size."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the fullest rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head + self.buffers

    def as_dict(self) -> dict[str, int]:
        """Bytes by part, and their total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class HostMemory:
    """Upper bound on the host memory of a rank of the fullest stage, in bytes."""

    start: int
    """Weights while the model is built; they are freed before the other two exist."""
    saving: int
    """Copy from which checkpoints are written."""
    offload: int
    """Offloaded optimiser states and gradients."""

    @property
    def total(self) -> int:
        """The most at one time."""
        return max(self.start, self.saving + self.offload)

    def as_dict(self) -> dict[str, int]:
        """Bytes by part, and their total."""
        return {**asdict(self), "total": self.total}


def estimate_memory(
    model: ModelConfig,
    layout: Layout,
    precision: str,
    micro_batch_tokens: int,
    mask_rate: float,
    stages: Sequence[Stage] | None = None,
) -> MemoryEstimate:
    """Bytes on the fullest rank, for micro-batches of `micro_batch_tokens` tokens; precision `fp32`, `bf16` or `fp16`.

    `stages` assigns parts of the model to pipeline stages (planning/stages.py); it may be omitted without a pipeline.
    """
    stages = stages or [Stage(range(model.layers))]
    assert len(stages) == layout.pipeline, f"{len(stages)} stages for a pipeline of {layout.pipeline}"
    return max(
        (
            _stage_memory(model, layout, precision, micro_batch_tokens, mask_rate, stage, len(stages) - number)
            for number, stage in enumerate(stages)
        ),
        key=lambda memory: memory.total,
    )


def _stage_memory(
    model: ModelConfig, layout: Layout, precision: str, tokens: int, mask_rate: float, stage: Stage, in_flight: int
) -> MemoryEstimate:
    """Bytes on a rank of one stage that holds the activations of `in_flight` micro-batches."""
    parameters, data, zero = stage_parameters(model, stage, layout.tensor), layout.data, layout.zero_stage
    half = precision != "fp32"
    element = 2 if half else 4

    def divided(size: int, from_stage: int) -> int:
        return -(-size // data) if zero >= from_stage else size

    bucket = min(BUCKET_ELEMENTS, parameters.own) * element
    buffers = (bucket if zero >= 2 else element * parameters.total * half) + (bucket if zero else 0)
    if zero == 3:
        buffers += min(LIVE_PARAMETERS, parameters.own) * element
    return MemoryEstimate(
        weights=divided(element * parameters.total, 3),
        gradients=0 if layout.offload_optimizer and zero == 3 else divided(4 * parameters.total, 2),
        optimizer=0 if layout.offload_optimizer else divided((12 if half or zero in (1, 2) else 8) * parameters.own, 1),
        activations=_activations(model, layout, element, tokens, stage, in_flight),
        head=_head(model, layout, element, round(mask_rate * tokens)) if stage.last else 0,
        buffers=buffers,
    )


def estimate_host_memory(
    model: ModelConfig,
    layout: Layout,
    precision: str,
    background: bool,
    stages: Sequence[Stage],
    shared: int = 0,
    whole: bool = False,
) -> HostMemory:
    """Host memory of a rank on CUDA devices; `background`: whether checkpoints are written in the background.

    shared: bytes that are replicated on all ranks and saved in shares (planning/checkpoint_size.py).
    whole: whether an objective needs all weights of the model before the engine is built.
    """
    own = max(stage_parameters(model, stage, layout.tensor).own for stage in stages)
    offload = 0
    if layout.offload_optimizer:
        offload = 12 * own + (4 * own if layout.zero_stage == 3 else 0)
    copied = -(-SAVED_BYTES * own // layout.data) + -(-shared // (layout.tensor * layout.pipeline * layout.data))
    start = _start(model, layout, 4 if precision == "fp32" else 2, stages, whole)
    return HostMemory(start, copied * (PINNED_ROUNDING if background else 1), -(-offload // layout.data))


def _start(model: ModelConfig, layout: Layout, element: int, stages: Sequence[Stage], whole: bool) -> int:
    """Host memory while the weights are drawn."""
    drawn = largest_matrix(model)
    if whole or layout.pipeline > 1:
        return 4 * (drawn + max(stage_parameters(model, stage, layout.tensor).total for stage in stages))
    part = -(-drawn // layout.tensor)
    return 4 * drawn + (4 * part if layout.tensor > 1 else 0) + (element * part if element < 4 else 0)


def _activations(model: ModelConfig, layout: Layout, element: int, tokens: int, stage: Stage, in_flight: int) -> int:
    modern = model.family == "modern"
    shared, split = layout.tensor, layout.tensor if layout.sequence else 1
    outside = (6 if modern else 4) * model.hidden / shared + 4 * model.hidden / split
    inside = (4 if modern else 2) * model.ffn / shared
    blocks = len(stage.blocks)
    per_token, once = blocks * (outside + inside), 0.0
    if layout.recompute == "selective":
        per_token, once = blocks * outside, inside
    elif layout.recompute == "blocks":
        again = sum(block % layout.recompute_every == 0 for block in stage.blocks)
        per_token = (blocks - again) * (outside + inside) + again * model.hidden / split
        once = outside + inside
    return int((per_token * in_flight + once) * tokens * element)


def _head(model: ModelConfig, layout: Layout, element: int, targets: int) -> int:
    logits = targets * -(-model.vocab_size // layout.tensor)
    states = 4 * targets * model.hidden * element
    weight_gradient = 4 * -(-model.vocab_size // layout.tensor) * model.hidden
    # Probabilities in fp32 in addition to the logits in the training precision.
    return states + weight_gradient + min(HEAD_CHUNK_BYTES, logits * (4 + element))
