from __future__ import annotations

import os
import signal

import pytest
import torch

from dist_metaxlm.training import resilience
from dist_metaxlm.training.resilience import SIGNALS, StopRequest

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_only_noted_and_handlers_come_back(number: signal.Signals,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    try:
        assert not stop.agreed(CPU)
        os.kill(os.getpid(), number)
        assert stop.agreed(CPU)
    finally:
        stop.restore()
    assert signal.getsignal(number) == before
    assert ("Ctrl-C again" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_a_second_interrupt_ends_at_once_unless_a_launcher_hands_on_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(resilience, "INSIST_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.restore()
