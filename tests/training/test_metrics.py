"""The clock of a run: speed, and how much of the time went into waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dist_metaxlm.training.metrics import Clock


def test_waiting_is_counted_apart_and_anew_in_each_interval() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.01)
            yield number

    clock = Clock(10.0)
    batches = clock.waiting_for(slow())
    assert next(batches) == 0
    assert next(batches) == 1
    rate, seconds, waited = clock.read(1000)
    assert seconds > 10
    assert rate > 0
    assert 0 < waited <= 1
    assert clock.read(0)[2] == 0.0
    assert list(batches) == [2]
