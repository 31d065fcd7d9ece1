"""Prevents the records of DeepSpeed's timers from accumulating over a run.

`PipelineEngine` (DeepSpeed 0.19.8) starts and stops a timer in every step and empties it only if `steps_per_print` is
set: on a CUDA device each record is two events, and a run of 500,000 steps would hold a million.
"""

from __future__ import annotations

from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine


def drop_timer_records(engine: Engine) -> None:
    """Empty the timers that DeepSpeed does not read later; call it after each step."""
    if engine.steps_per_print() is not None:
        return  # it reads and empties them itself, at every such step
    for timer in engine.timers.get_timers().values():
        if not timer.started_:
            timer.reset()
