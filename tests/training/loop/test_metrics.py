"""The clock of a run: speed, and how much of the time went into waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from dist_metaxlm.tracking.log import TrackerLog
from dist_metaxlm.tracking.tracker import TrackedPhase
from dist_metaxlm.training.loop.metrics import Clock, MetricsWriter


def test_waiting_is_counted_separately_and_reset_in_each_interval() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.01)
            yield number

    clock = Clock(10.0)
    batches = clock.waiting_for(slow())
    assert next(batches) == 0
    assert next(batches) == 1
    rate, seconds, waited, interval = clock.read(1000)
    assert 0.02 <= interval < seconds
    assert seconds > 10
    assert rate > 0
    assert 0 < waited <= 1
    assert clock.read(0)[2] == 0.0
    assert list(batches) == [2]


def test_a_resumed_run_drops_later_events_and_keeps_that_of_its_checkpoint(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, (2,)), (0, (2, 4, 6)), (4, (6, 8))):  # the first was killed before it saved anything
        phase = TrackedPhase(run="tiny", phase="meta", folder=tmp_path, step=done, settings={"seed": 1}, environment={})
        with MetricsWriter(tmp_path, TrackerLog(["tensorboard"], phase)) as writer:
            for step in steps:
                writer.write({"step": step, "loss": float(step), "losses": {}, "language_losses": {}})
        time.sleep(1.01 * (done == 0))  # the files are read in the order of their names, which have whole seconds
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]
