"""fp16 training: the loss scale (arXiv 1710.03740), its state in checkpoints and metrics, and the check of fp16 support.

DeepSpeed multiplies the loss by a scale that keeps small gradients above fp16's smallest number and doubles it after
`loss_scale_window` good steps. A gradient that overflows skips the update and, at the second time, halves the scale. A
skipped step still counts as a step: its data is not used again, the learning-rate schedule advances, and only Adam's
update count does not increase.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.errors import UserError
from dist_metaxlm.reporting.records import StepFigures

if TYPE_CHECKING:
    from deepspeed.runtime.fp16.loss_scaler import LossScalerBase

_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""State fields of DeepSpeed's DynamicLossScaler."""


def check_fp16(precision: str) -> None:
    """Refuse fp16 if DeepSpeed does not support it on this device.

    Raises:
        UserError: on a CPU without fp16 instructions (AVX512-FP16, AMX-FP16).
    """
    if precision != "fp16":
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches for one and warns
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().is_fp16_supported():
        raise UserError(
            "training.precision=fp16 needs a CUDA device or a CPU with fp16 instructions, but this machine has "
            "neither; set training.precision=bf16 or fp32"
        )


def _scaler(engine: Engine) -> LossScalerBase | None:
    return getattr(engine.optimizer, "loss_scaler", None) if engine.fp16_enabled() else None


def scales_dynamically(engine: Engine) -> bool:
    """Whether overflowing gradients skip a step and adjust the loss scale."""
    scaler = _scaler(engine)
    return scaler is not None and bool(scaler.dynamic)


def prepare_scaler(engine: Engine) -> None:
    """Work around two defects of DeepSpeed's (0.19.8) dynamic loss scale.

    At the smallest scale it raises a bare exception; `step_figures` raises an explained error instead. And it doubles the
    scale before it divides the same step's gradients by it, which halves them; here the scale doubles after the update.
    """
    scaler = _scaler(engine)
    if scaler is None or not scaler.dynamic:
        return
    scaler.raise_error_at_min_scale = False
    update_weights, update_scale = engine.optimizer.step, scaler.update_scale
    grown: list[float] = []

    def decide(overflow: bool) -> None:
        before = scaler.cur_scale
        update_scale(overflow)
        if scaler.cur_scale > before:
            grown.append(scaler.cur_scale)
            scaler.cur_scale = before

    def step(*arguments: object, **named: object) -> None:
        update_weights(*arguments, **named)
        if grown:
            scaler.cur_scale = grown.pop()

    scaler.update_scale, engine.optimizer.step = decide, step


def scaler_state(engine: Engine) -> dict[str, float]:
    """Scaler state for a checkpoint's manifest, so that a resumed run scales and skips identically."""
    state: dict[str, float] = {"skipped_steps": engine.skipped_steps}
    scaler = _scaler(engine)
    if scaler is not None and scaler.dynamic:
        state |= {name: getattr(scaler, name) for name in _STATE}
    return state


def restore_scaler(engine: Engine, state: Mapping[str, float]) -> None:
    """Restore the result of `scaler_state`; the scale restarts if another precision or version saved it."""
    engine.skipped_steps = int(state.get("skipped_steps", 0))
    scaler = _scaler(engine)
    if scaler is not None and scaler.dynamic and all(name in state for name in _STATE):
        for name in _STATE:
            setattr(scaler, name, type(getattr(scaler, name))(state[name]))


def step_figures(engine: Engine) -> StepFigures:
    """For the metrics: norm of the last step's gradient (None if it overflowed), steps skipped so far, loss scale.

    Raises:
        UserError: if gradients overflow at the smallest loss scale: no further update is possible.
    """
    norm = engine.get_global_grad_norm()
    norm = float(norm) if norm is not None else 0.0
    figures: StepFigures = {"grad_norm": norm if math.isfinite(norm) else None}
    if engine.fp16_enabled() or engine.bfloat16_enabled():
        figures["skipped_steps"] = engine.skipped_steps
    scaler = _scaler(engine)
    if scaler is not None:
        figures["loss_scale"] = float(scaler.cur_scale)
        if scaler.dynamic and engine.optimizer.overflow and scaler.cur_scale <= scaler.min_scale:
            raise UserError(
                f"gradients overflow at the smallest loss scale, {scaler.cur_scale}; set "
                "training.precision=bf16 and run the phase again, which resumes from the last checkpoint, or "
                "lower phases.*.learning_rate.peak or raise warmup_steps and add --resume never"
            )
    return figures
