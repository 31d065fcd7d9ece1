"""Limits, silence and the choice of the rank that is named, without any process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dist_metaxlm.liveness import operations
from dist_metaxlm.liveness.operations import BYTES, COUNT, LIMIT, SAVE_BEGUN, STEP, Limits, Operations
from dist_metaxlm.liveness.reports import Report, culprit, waits_in_collective
from dist_metaxlm.liveness.watcher import LOOK_SECONDS, Silence, report_of
from dist_metaxlm.training.loop.pace import slowest

LIMITS = Limits(least=30, factor=5, start=1800, save=900, evaluate=600)


@pytest.fixture()
def record() -> Iterator[Operations]:
    memory = os.memfd_create("operations")
    os.ftruncate(memory, BYTES)
    record = Operations(memory, LIMITS, 0)
    yield record
    record.close()
    os.close(memory)


def test_the_limit_follows_the_step_time(record: Operations) -> None:
    cells = record._cells
    assert cells[LIMIT] == 1800
    for step in range(1, 5):
        record.begin_step(step)
        record.enter(operations.FORWARD)
        assert cells[LIMIT] == (1800 if step <= 3 else 30)
    record._durations.clear()
    record._durations.extend([1.0] * 98 + [8.0, 9.0])
    record.begin_step(5)
    assert cells[STEP] == 5
    assert cells[LIMIT] == pytest.approx(40)
    record.enter(operations.EVALUATING)
    assert cells[LIMIT] == 600


def test_a_rank_that_has_saved_waits_for_one_that_still_saves(record: Operations) -> None:
    cells = record._cells
    for step in range(1, 6):
        record.begin_step(step)
    record.enter(operations.SAVING)
    record.enter(operations.COLLECTIVE)
    assert cells[LIMIT] == 900
    record.begin_step(6)
    record.enter(operations.BACKWARD)
    assert cells[LIMIT] == 900
    record.begin_step(7)
    assert cells[LIMIT] == 30
    record.enter(operations.EVALUATING)
    record.enter(operations.COLLECTIVE)
    assert cells[LIMIT] == 30


def test_only_time_in_which_the_watcher_ran_counts(record: Operations) -> None:
    silence, cells = Silence(), record._cells
    record.begin_background()
    for passed, traced in ((0.5, False), (0.5, False), (3600.0, False), (0.5, True)):
        silence.look(cells, passed, traced)
    assert silence.seconds == silence.saving == 0.5 + 2 * LOOK_SECONDS
    record.enter(operations.FORWARD)
    record.end_background()
    silence.look(cells, 0.5, False)
    assert silence.seconds == silence.saving == 0


def test_a_save_over_its_limit_is_reported(record: Operations) -> None:
    silence, cells = Silence(), record._cells
    facts = {"rank": 0, "size": 1, "host": "a", "pid": 1, "memory": 0, "stacks": 0, "queue": None, "signal": 0, "folder": ""}
    assert not report_of(facts, cells, silence, "S")["hung"]  # type: ignore[arg-type]
    silence.saving = 901
    report = report_of(facts, cells, silence, "T")  # type: ignore[arg-type]
    assert (report["hung"], report["operation"], report["suspended"]) == (True, operations.BACKGROUND, True)
    assert cells[COUNT] == 1
    assert cells[SAVE_BEGUN] == 0


def report(rank: int, step: int = 7, suspended: bool = False, waiting: bool = True) -> Report:
    return {
        "rank": rank,
        "host": "a",
        "pid": 1,
        "operation": operations.FORWARD,
        "step": step,
        "operations": 9,
        "seconds": 31.0,
        "limit": 30.0,
        "suspended": suspended,
        "waiting": waiting,
        "hung": True,
    }


def test_the_rank_that_the_others_wait_for_is_named() -> None:
    assert culprit([report(0), report(1, waiting=False), report(2, 6)])["rank"] == 1
    assert culprit([report(0), report(1, waiting=False), report(2, 8, suspended=True)])["rank"] == 2
    assert culprit([report(0), report(1, 6), report(2)])["rank"] == 1


def test_a_collective_is_recognised_in_the_stack_of_the_right_thread() -> None:
    saving = (
        'Thread 0x1 (most recent call first):\n  File "a.py", line 1 in _act\n  File "s.py", line 2 in _copy_and_write\n'
    )
    main = 'Thread 0x2 (most recent call first):\n  File "/x/torch/distributed/c.py", line 1 in all_reduce\n'
    assert waits_in_collective(f"{saving}\n{main}", saving=False)
    assert not waits_in_collective(f"{saving}\n{main}", saving=True)


def test_a_rank_is_slow_from_a_tenth_of_the_interval() -> None:
    assert slowest([0.2, 0.5, 0.22], ["a", "b", "c"]) == {"rank": 1, "host": "b", "share": 0.29}
    assert slowest([0.2, 0.25], ["a", "b"]) is None
