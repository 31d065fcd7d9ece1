"""Building ahead keeps the order, delivers exceptions in place and stops cleanly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from dist_metaxlm.data.prefetch import prefetch


def _workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_results_come_in_order(depth: int, workers: int) -> None:
    def slower_at_first(number: int) -> int:
        time.sleep(0.002 if number % 4 == 0 else 0)
        return number

    thunks = (partial(slower_at_first, number) for number in range(20))
    assert list(prefetch(thunks, depth, workers)) == list(range(20))
    assert not _workers()


def test_builds_ahead_of_the_consumer_but_no_further_than_depth() -> None:
    built = [threading.Event() for _ in range(10)]

    def thunk(number: int) -> int:
        built[number].set()
        return number

    results = prefetch((partial(thunk, number) for number in range(10)), depth=2)
    assert next(results) == 0
    assert built[2].wait(10)
    assert not built[3].is_set()
    results.close()


def test_an_exception_arrives_where_its_result_would_have() -> None:
    def fail() -> int:
        raise ValueError("third")

    thunks: list[Callable[[], int]] = [lambda: 1, lambda: 2, fail, lambda: 4]
    results = prefetch(thunks, depth=3)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)
    assert not _workers()


def test_closing_drops_what_is_not_begun() -> None:
    started = []
    gate = threading.Event()

    def thunk(number: int) -> int:
        started.append(number)
        if number:
            gate.wait(10)
        return number

    results = prefetch((partial(thunk, number) for number in range(10)), depth=5)
    assert next(results) == 0
    threading.Timer(0.5, gate.set).start()  # long after the rest was dropped, on a busy machine too
    results.close()
    assert len(started) <= 2
    assert not _workers()
