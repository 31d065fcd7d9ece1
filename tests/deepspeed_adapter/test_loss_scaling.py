"""The loss scale: gradients divided by what they were multiplied with, restored whole, refused where it cannot work.

Whole runs in fp16 are in tests/distributed/test_precision.py.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from dist_metaxlm.deepspeed_adapter.loss_scaling import (
    check_fp16,
    prepare_scaler,
    restore_scaler,
    scaler_state,
    step_figures,
)
from dist_metaxlm.errors import UserError


def engine_with(scale: float, window: int = 2, smallest: float = 1.0) -> Any:
    """What loss_scaling.py reads of an engine, around DeepSpeed's own scaler; `optimizer.step(overflow)` is its order."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = DynamicLossScaler(scale, window, smallest, 1, False)
    used: list[float] = []
    optimizer = SimpleNamespace(loss_scaler=scaler, overflow=False, used=used)

    def step(overflow: bool) -> None:
        optimizer.overflow = overflow
        scaler.update_scale(overflow)
        used.append(scaler.cur_scale)  # what gradients are divided by

    optimizer.step = step
    engine = SimpleNamespace(
        optimizer=optimizer,
        skipped_steps=0,
        fp16_enabled=lambda: True,
        bfloat16_enabled=lambda: False,
        get_global_grad_norm=lambda: float("inf") if optimizer.overflow else 2.0,
    )
    prepare_scaler(engine)
    return engine


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.fp16 import loss_scaler

    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 0)


def test_gradients_are_divided_by_the_scale_they_were_made_with() -> None:
    engine = engine_with(8.0)
    scales = []
    for _ in range(8):
        scales.append(engine.optimizer.loss_scaler.cur_scale)
        engine.optimizer.step(False)
    assert engine.optimizer.used == scales
    assert scales == [8.0] * 3 + [16.0] * 2 + [32.0] * 2 + [64.0], "doubled after every second good step"


def test_a_restored_scaler_does_what_the_first_would_have_done() -> None:
    overflows = [False, False, False, True, False, False, True, False, False, False, False]
    first = engine_with(8.0)
    for overflow in overflows[:5]:
        first.optimizer.step(overflow)
    state = json.loads(json.dumps(scaler_state(first)))
    second = engine_with(2.0)
    restore_scaler(second, state)
    assert scaler_state(second) == state
    for overflow in overflows[5:]:
        for engine in (first, second):
            engine.optimizer.step(overflow)
        assert scaler_state(first) == scaler_state(second)
    third = engine_with(2.0)
    restore_scaler(third, {"skipped_steps": 3})  # saved by a run in bf16
    assert (third.skipped_steps, third.optimizer.loss_scaler.cur_scale) == (3, 2.0)


def test_overflow_at_the_smallest_scale_ends_the_run_with_a_sentence() -> None:
    engine = engine_with(4.0)
    engine.optimizer.step(True)
    assert step_figures(engine) == {"grad_norm": None, "skipped_steps": 0, "loss_scale": 2.0}
    engine.optimizer.step(True)
    engine.optimizer.step(False)
    assert step_figures(engine) == {"grad_norm": 2.0, "skipped_steps": 0, "loss_scale": 1.0}
    engine.optimizer.step(True)
    with pytest.raises(UserError, match=r"smallest loss scale, 1\.0; set training.precision=bf16"):
        step_figures(engine)


def test_a_cpu_without_fp16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: None)
    check_fp16("bf16")
    with pytest.raises(UserError, match=r"^training\.precision=fp16 needs .*; set training\.precision=bf16 or fp32$"):
        check_fp16("fp16")
