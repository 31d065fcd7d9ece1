"""What a step computes and how: the shape of the model, the passes of a step, the layout and the software.

Free of recipes, so that published runs of decoders and encoders are predicted by the same functions as recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A transformer, encoder or decoder."""

    layers: int
    hidden: int
    ffn: int
    """Width inside the feed-forward layer, after the gate."""
    gated: bool
    """Whether the feed-forward layer has three matrices (GeGLU, SwiGLU) instead of two."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rotary: bool = False
    window: int | None = None
    """Tokens a local layer attends over; None: every layer is global."""
    global_every: int = 1
    """Layers 0, k, 2k, ... are global."""
    dense_head: bool = False
    """Whether a dense layer [h, h] precedes the output projection, on the targets."""
    tied: bool = True
    """Whether the output projection is the token embedding."""

    @property
    def block_parameters(self) -> int:
        """Elements of the matrices of a block."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + self.hidden * self.ffn * (3 if self.gated else 2)

    @property
    def parameters(self) -> int:
        """Elements of all matrices."""
        return self.layers * self.block_parameters + self.vocab * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Documents that go through the model in one step, over all ranks."""

    tokens: int
    length: float
    """Tokens of a document: a token attends over as many (half as many if causal)."""
    targets: float = 1.0
    """Share of the tokens whose states reach the vocabulary."""
    layers: int | None = None
    """Blocks that are run; None: all."""
    backward: bool = True
    causal: bool = False
    share: float = 1.0
    """Share of the steps in which the pass takes place."""


@dataclass(frozen=True, kw_only=True)
class Software:
    """Generation of the kernels; the default is what this trainer runs on a GPU."""

    flash: Literal[0, 1, 2, 3] = 2
    """Memory-linear attention, by generation (arXiv 2205.14135, 2307.08691, 2407.08608); 0: attention matrices in memory."""
    fused: bool = True
    """Whether norms, activations, biases and residual sums are fused kernels instead of one kernel an operation."""
    fused_loss: bool = True
    """Whether the loss reads the logits in chunks instead of fp32 copies of all of them."""
    overlap_tensor: float = 0.0
    """Share of tensor-parallel communication that runs beside matrix products."""
    reduce_passes: int = 1
    """Passes over the gradients with ZeRO-1 and 2: one for a reduce-scatter, two where whole buckets go to all ranks."""
    overlap_gather: bool = False
    """Whether ZeRO-1 gathers the new weights beside the next forward pass."""
    chunks: int = 1
    """Interleaved stages of a pipeline rank."""
    step_overhead: float = 0.005
    """Seconds of host work in every optimiser step that devices wait for."""
    loader: float = 0.0
    """Seconds a token and device in which the host prepares batches, beside the devices."""
    kernels: Literal["eager", "graph"] = "eager"
    """Whether kernels are started one by one or as a captured graph."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a step is distributed."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    zero_stage: int = 1
    sequence: bool = False
    micro_batch_tokens: int
    """Tokens of a micro-batch of one copy of the model."""
    recompute: Literal["none", "selective", "blocks"] = "none"
    recompute_every: int = 1
    offload_optimizer: bool = False
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "bf16"
    software: Software = Software()


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Predicted time of an optimiser step."""

    items: dict[str, float]
    """Seconds by item of a rank, on average over the stages, whose waits are `bubble`; they add up to `seconds`. Items:
    products, attention, head, elementwise, recompute, tensor, gather, gradients, transfer, bubble, optimizer, launch, host,
    waiting, checkpoint."""
    stages: tuple[float, ...]
    """Seconds of one micro-batch of the first pass by pipeline stage, forward and backward."""
    micro_batches: int
    """Micro-batches of a copy of the model in a step, of all passes."""
    tokens: float
    """Tokens of a step over all ranks."""
    flops: float
    """Operations of a step over all ranks: forward and backward once each, with the head on targets only."""
    devices: int
    peak: float
    """Dense bf16 peak of a device."""

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return sum(self.items.values())

    @property
    def tokens_per_second(self) -> float:
        """Over all devices."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Share of the dense bf16 peak of all devices."""
        return self.flops / (self.seconds * self.devices * self.peak)

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return {
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "items": dict(self.items),
            "stages": list(self.stages),
            "micro_batches": self.micro_batches,
        }
