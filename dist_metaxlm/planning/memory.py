"""Bytes a rank needs: weights, gradients, optimiser states, activations.

Model states follow the ZeRO paper (arXiv 1910.02054, section 3.1 and figure 1) for AdamW, with P parameters of the
rank's own shard of the model and N data-parallel ranks:

    bf16: weights 2 P, gradients 4 P (summed in fp32 over micro-batches), fp32 weights and two moments 12 P
    fp32: weights 4 P, gradients 4 P, two moments 8 P
    ZeRO-1 divides the optimiser's part by N, ZeRO-2 also the gradients, ZeRO-3 also the weights.

fp16 needs what bf16 does. Half-precision gradients are also there once as the 2-byte gradients of one backward pass: 2 P
(ZeRO-0, 1), one bucket else. Offload (arXiv 2101.06840) moves the optimiser's part to the CPU, and with ZeRO-3 the summed
gradients too.

Activations are an estimate: per token and block the tensors that the backward pass needs, with memory-linear attention
and nothing recomputed, 8 h + 2 f elements (modern: 10 h + 4 f; rotated queries and keys lie beside the others). Tensor
parallelism divides 4 h (modern: 6 h) and the f part, sequence parallelism all of it. `recompute: selective` leaves out the
f part but for one block at a time; of a block that `recompute: blocks` takes its input stays, h, and one such block at a
time is there whole. A pipeline's first stage holds as many micro-batches as there are stages. The head holds the gathered
targets' states and one chunk of logits.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dist_metaxlm.planning.parameters import ParameterCounts, count_parameters
from dist_metaxlm.recipe.schema import ModelConfig, ParallelConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements of DeepSpeed's reduce and all-gather buckets, as in ds_configs/."""
HEAD_CHUNK_BYTES = 2 * 10**9
"""Allowance for the logits that the head holds at once, in bytes; the kernels take no larger chunk."""
LIVE_PARAMETERS = 1_000_000_000
"""ZeRO-3: gathered parameters that DeepSpeed keeps at most (its default stage3_max_live_parameters)."""

KEEP_ALL = ParallelConfig()
"""Nothing recomputed, nothing offloaded."""


@dataclass(frozen=True)
class Layout:
    """How ranks are used: world size = tensor * pipeline * data."""

    tensor: int
    pipeline: int
    data: int
    sequence: bool
    zero_stage: int


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


def stage_parameters(model: ModelConfig, layout: Layout) -> int:
    """Parameters on one rank of the fullest pipeline stage, before ZeRO.

    With a pipeline the first and the last stage hold the word embedding each, and blocks are dealt out evenly.
    """
    counts = count_parameters(model)
    vocabulary = -(-(counts.word_embedding + counts.output_bias) // layout.tensor)
    per_stage = -(-model.layers // layout.pipeline)
    blocks = -(-counts.blocks_split * per_stage // (layout.tensor * model.layers))
    blocks += -(-counts.blocks_whole * per_stage // model.layers)
    return vocabulary + blocks + _end_parameters(counts, layout.pipeline)


def _end_parameters(counts: ParameterCounts, pipeline: int) -> int:
    first = counts.positions + counts.embedding_norm
    last = counts.final_norm + counts.head
    return first + last if pipeline == 1 else max(first, last)


def estimate_memory(model: ModelConfig, layout: Layout, precision: str, micro_batch_tokens: int,
                    mask_rate: float, saving: ParallelConfig = KEEP_ALL) -> MemoryEstimate:
    """Bytes on the fullest rank, for micro-batches of `micro_batch_tokens` tokens; precision `fp32`, `bf16` or `fp16`.

    Of `saving` count what it recomputes and whether it offloads; the layout is `layout`.
    """
    parameters, data, stage = stage_parameters(model, layout), layout.data, layout.zero_stage
    half = precision != "fp32"
    element = 2 if half else 4

    def divided(size: int, from_stage: int) -> int:
        return -(-size // data) if stage >= from_stage else size

    offload = saving.offload_optimizer
    gradients = 0 if offload and stage == 3 else divided(4 * parameters, 2)
    bucket = min(BUCKET_ELEMENTS, parameters) * element
    buffers = (bucket if stage >= 2 else element * parameters * half) + (bucket if stage else 0)
    if stage == 3:
        buffers += min(LIVE_PARAMETERS, parameters) * element
    return MemoryEstimate(
        weights=divided(element * parameters, 3),
        gradients=gradients,
        optimizer=0 if offload else divided((12 if half else 8) * parameters, 1),
        activations=_activations(model, layout, element, micro_batch_tokens, saving),
        head=_head(model, layout, element, round(mask_rate * micro_batch_tokens)),
        buffers=buffers,
    )


def _activations(model: ModelConfig, layout: Layout, element: int, tokens: int, saving: ParallelConfig) -> int:
    modern = model.family == "modern"
    shared, split = layout.tensor, layout.tensor if layout.sequence else 1
    outside = (6 if modern else 4) * model.hidden / shared + 4 * model.hidden / split
    inside = (4 if modern else 2) * model.ffn / shared
    blocks = -(-model.layers // layout.pipeline)
    per_token, once = blocks * (outside + inside), 0.0
    if saving.recompute == "selective":
        per_token, once = blocks * outside, inside
    elif saving.recompute == "blocks":
        again = -(-blocks // saving.recompute_every)
        per_token = (blocks - again) * (outside + inside) + again * model.hidden / split
        once = outside + inside
    return int((per_token * layout.pipeline + once) * tokens * element)


def _head(model: ModelConfig, layout: Layout, element: int, targets: int) -> int:
    logits = targets * -(-model.vocab_size // layout.tensor)
    states = 4 * targets * model.hidden * element
    weight_gradient = 4 * -(-model.vocab_size // layout.tensor) * model.hidden
    # Probabilities in fp32 beside the logits in the training precision.
    return states + weight_gradient + min(HEAD_CHUNK_BYTES, logits * (4 + element))
