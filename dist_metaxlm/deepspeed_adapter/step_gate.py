"""Asks `engine.accept_norm` in every update, after the gradient norm is known and before anything changes.

A refused update is skipped in the way in which DeepSpeed (0.19.8) skips one whose gradients are not finite: the norm is
reported as infinite. Every optimiser of DeepSpeed reads the norm on the host at this point; here it is read once more,
when nothing is queued on the device any longer. Without ZeRO, gradient_norm.py asks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine

if TYPE_CHECKING:
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


def gate_updates(engine: Engine) -> None:
    """Install the question in a ZeRO optimiser. Call it once, after the norms are exact."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return
    if hasattr(optimizer, "get_grads_for_norm"):
        _gate_bf16(engine, optimizer)
    elif hasattr(optimizer, "_get_norm_groups"):
        _gate_zero3(engine, optimizer)
    else:
        _gate_zero12(engine, optimizer)


def _refuses(engine: Engine, norm: torch.Tensor | float, scale: float) -> bool:
    """Whether a finite norm of gradients that are multiplied by `scale` is refused; others DeepSpeed skips itself."""
    value = float(norm) / scale
    return math.isfinite(value) and value >= 0 and not engine.accept_norm(value)


def _infinite(norm: torch.Tensor | float) -> torch.Tensor | float:
    return torch.full_like(norm, math.inf) if isinstance(norm, torch.Tensor) else math.inf


def _gate_zero12(engine: Engine, optimizer: DeepSpeedZeroOptimizer) -> None:
    norm_of_deepspeed, update = optimizer.scaled_global_norm, optimizer.step
    keep_scale = _keep_scale(optimizer)

    def gated(*arguments: object, **named: object) -> torch.Tensor | float:
        norm = norm_of_deepspeed(*arguments, **named)
        # With bf16.check_grad_overflow=false DeepSpeed would apply what is not finite, too.
        optimizer.check_grad_overflow = True
        keep_scale[0] = _refuses(engine, norm, optimizer.loss_scale)
        return _infinite(norm) if keep_scale[0] else norm

    def step(*arguments: object, **named: object) -> None:
        checked = optimizer.check_grad_overflow
        try:
            update(*arguments, **named)
        finally:
            optimizer.check_grad_overflow = checked

    optimizer.scaled_global_norm, optimizer.step = gated, step


def _gate_zero3(engine: Engine, optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
    from deepspeed.runtime.utils import combine_grad_norm_groups

    norms_of_deepspeed = optimizer._get_norm_groups
    keep_scale = _keep_scale(optimizer)

    def gated() -> list[torch.Tensor | float]:
        norms: list[torch.Tensor | float] = norms_of_deepspeed()
        keep_scale[0] = _refuses(engine, combine_grad_norm_groups(norms), optimizer.loss_scale)
        return [_infinite(norm) for norm in norms] if keep_scale[0] else norms

    optimizer._get_norm_groups = gated


def _keep_scale(optimizer: DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3) -> list[bool]:
    """A flag that keeps fp16's loss scale as it is in the next update: a refused one says nothing about the scale."""
    flag, update_scale = [False], optimizer._update_scale

    def decide(overflow: bool = False) -> None:
        if not flag[0]:
            update_scale(overflow)
        flag[0] = False

    optimizer._update_scale = decide
    return flag


def _gate_bf16(engine: Engine, optimizer: BF16_Optimizer) -> None:
    """DeepSpeed's bf16 optimiser calls a function of its module for the norm; it is replaced while `step` runs."""
    from deepspeed.runtime import bf16_optimizer

    update = optimizer.step

    def step(*arguments: object, **named: object) -> None:
        norm_of_deepspeed = bf16_optimizer.get_global_norm_of_tensors

        def gated(**tensors: object) -> torch.Tensor | float:
            norm = norm_of_deepspeed(**tensors)
            return _infinite(norm) if _refuses(engine, norm, 1.0) else norm

        bf16_optimizer.get_global_norm_of_tensors = gated
        try:
            update(*arguments, **named)
        finally:
            bf16_optimizer.get_global_norm_of_tensors = norm_of_deepspeed

    optimizer.step = step
