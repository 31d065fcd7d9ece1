"""Timers of an engine are empty after each step, but for those that DeepSpeed reads itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dist_metaxlm.deepspeed_adapter.timers import drop_timer_records


def engine_with_timers(steps_per_print: int | None) -> Any:
    from deepspeed.utils.timer import SynchronizedWallClockTimer

    return SimpleNamespace(timers=SynchronizedWallClockTimer(), steps_per_print=lambda: steps_per_print)


@pytest.mark.parametrize(("steps_per_print", "kept"), [(None, 0), (10, 3)])
def test_records_are_dropped_unless_deepspeed_prints_them(steps_per_print: int | None, kept: int) -> None:
    engine = engine_with_timers(steps_per_print)
    for _ in range(3):
        engine.timers("train_batch").start()
        engine.timers("train_batch").stop()
        drop_timer_records(engine)
    assert len(engine.timers("train_batch").event_timers) == kept


def test_a_timer_that_runs_goes_on() -> None:
    engine = engine_with_timers(None)
    engine.timers("outer").start()
    drop_timer_records(engine)
    engine.timers("outer").stop()
    assert len(engine.timers("outer").event_timers) == 1
