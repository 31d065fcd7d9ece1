from __future__ import annotations

import os
import signal
import time

import pytest

from dist_metaxlm.training.loop import resilience
from dist_metaxlm.training.loop.resilience import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_only_noted_and_handlers_come_back(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    before = signal.getsignal(number)
    stop = StopRequest(0, 1)
    try:
        assert not stop.agreed(1)
        os.kill(os.getpid(), number)
        assert stop.agreed(2)
    finally:
        stop.restore()
    assert signal.getsignal(number) == before
    assert ("Ctrl-C again" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_a_second_interrupt_ends_at_once_unless_a_launcher_hands_on_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest(0, 1)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(resilience, "INSIST_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.restore()


def test_long_steps_are_looked_between_and_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stop = StopRequest(7, 10)  # resumed in the middle of an interval
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        for seconds, expected in ((0.01, [8, 10, 20, 30]), (0.5, [8, 10, 14, 18, 20, 24, 28, 30]), (3.0, [*range(8, 31)])):
            stop._looked_at, stop._looked, stop._steps, looked = 7, now, 1, []
            for step in range(8, 31):
                now += seconds
                if stop.agreed(step):
                    looked.append(step)
            assert looked == expected
    finally:
        stop.restore()
