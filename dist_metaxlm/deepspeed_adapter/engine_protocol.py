"""The part of a DeepSpeed engine (0.19.8) that the trainer uses; DeepSpeed's own classes are untyped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist


class DeepSpeedParameter(torch.nn.Parameter):
    """A parameter with the attributes that DeepSpeed sets on it. Only the type exists: no parameter is made of it."""

    ds_id: int
    """With ZeRO-3, as the next four."""
    ds_numel: int
    """Elements of the whole parameter."""
    ds_shape: torch.Size
    ds_tensor: torch.Tensor
    """This rank's piece, flat and zero-padded."""
    ds_process_group: dist.ProcessGroup
    _hp_mapping: Any
    """With ZeRO-1 and 2: the piece of the fp32 master that this rank holds, or None."""
    ds_pipe_replicated: bool
    """On a pipeline: whether it is the copy of another stage's parameter."""
    grad_accum: torch.Tensor | None
    """With fp32 sums of half-precision gradients."""


class Engine(Protocol):
    """A module with its optimiser, sharded over the ranks: `DeepSpeedEngine`."""

    module: Any
    """The trained module, this rank's part of the model in its `encoder`: `PretrainingModel`, or a pipeline stage."""
    optimizer: Any
    """DeepSpeed's wrapper around AdamW, which differs by ZeRO stage and precision; with ZeRO-0 in fp32 AdamW itself."""
    skipped_steps: int
    """Updates skipped so far because a gradient overflowed."""
    enable_backward_allreduce: bool
    """Whether a backward pass averages gradients over the data-parallel ranks."""
    clip_fp32_gradients: Callable[[], None]
    """Clips gradients before an update, without ZeRO."""
    timers: Any
    """DeepSpeed's timers."""
    accept_norm: Callable[[float], bool]
    """Asked in each update with the finite gradient norm; False skips the update (deepspeed_adapter/step_gate.py)."""
    _global_grad_norm: torch.Tensor
    """Value of `get_global_grad_norm`."""

    @property
    def device(self) -> torch.device:
        """This rank's device."""

    def __call__(self, *inputs: object) -> Any:
        """The module's forward pass (collective under ZeRO-3)."""

    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool = True) -> object:
        """Backward pass of a micro-step (collective)."""

    def step(self) -> None:
        """Update the weights (collective)."""

    def get_global_grad_norm(self) -> torch.Tensor | float | None:
        """Norm of the gradients of the last update, over all ranks; None before the first."""

    def gradient_clipping(self) -> float:
        """Maximum gradient norm; 0 disables clipping."""

    def zero_optimization_stage(self) -> int:
        """ZeRO stage, 0 to 3."""

    def fp16_enabled(self) -> bool:
        """Whether it computes in fp16."""

    def bfloat16_enabled(self) -> bool:
        """Whether it computes in bf16."""

    def steps_per_print(self) -> int | None:
        """Steps between DeepSpeed's own reports; None: it makes none."""

    def destroy(self) -> None:
        """Remove its hooks and release its memory."""


class StageEngine(Engine, Protocol):
    """The engine of a pipeline stage: `PipelineEngine`."""

    micro_batches: int
    """Micro-steps of the coming optimiser step."""

    def train_batch(self, data_iter: Iterator[object]) -> object:
        """Run one optimiser step, with forward and backward passes of all micro-steps (collective)."""
