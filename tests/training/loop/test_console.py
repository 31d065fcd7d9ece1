"""The progress bar at 80 columns, and the plain line of a log interval."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console

from dist_metaxlm.planning.flops import step_flops
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.loop.console import ProgressLine
from dist_metaxlm.training.loop.metrics import Clock
from dist_metaxlm.training.loop.pace import PaceMeter, duration, interval_text
from dist_metaxlm.training.loop.progress import Progress

RECORD: Any = {
    "step": 20,
    "tokens": 81920,
    "loss": 14.2191,
    "losses": {"mlm": 5.917, "tlm": 5.85, "contrast": 2.451},
    "learning_rate": 2e-3,
    "tokens_per_second": 6824.0,
    "flops_per_second": 312.5e12,
    "mfu": 0.316,
    "device_memory": 41_200_000_000,
    "host_memory": 3_000_000_000,
    "seconds_left": 3725.0,
    "heldout": {"bits_per_byte": 1.5, "word_frequencies": 2.25},
}


def test_the_bar_fits_80_columns_shows_everything_and_moves_every_step() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    with ProgressLine("cross", 500, 0, True, console) as line:
        line.show(RECORD)
        for step in (21, 22):
            line.advance(step)
            assert line._bar is not None
            line._bar.refresh()
            assert f"{step}/500" in screen.getvalue()
    rows = [row for row in screen.getvalue().replace("\r", "\n").split("\n") if "\x1b" not in row]
    assert max(map(len, rows)) <= 80
    shown = " ".join(screen.getvalue().split())
    for words in (
        "loss 14.219",
        "MFU 31.6%",
        "41.2 GB GPU",
        "3.0 GB host",
        "held-out 1.500 bits/byte",
        "learning rate 2.00e-03",
    ):
        assert words in shown


def test_a_plain_line_has_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressLine("cross", 500, 0, True).show(RECORD)
    assert capsys.readouterr().out.splitlines() == [
        "cross step 20/500  loss 14.219  mlm 5.917  tlm 5.850  contrast 2.451  81,920 tokens  6,824 tokens/s  "
        "312 TFLOP/s (MFU 31.6%)  41.2 GB GPU  3.0 GB host  held-out 1.500 bits/byte (word frequencies 2.250)  "
        "learning rate 2.00e-03  left 1:02:05"
    ]


def test_operations_are_those_of_the_computed_steps_and_the_rest_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    recipe = load_recipe("quickstart")
    phase, device = recipe.phases["cross"], torch.device("cpu")
    progress = Progress("cross", "ab", 10, device)
    pace = PaceMeter(Clock(5.0), recipe.model, phase, progress, device)
    for _ in range(4):
        pace.add([(objective, 1.0, 0) for objective in phase.objectives])
        progress.advance(phase, [(objective, 1.0, 0) for objective in phase.objectives])
    now = 108.0
    figures = pace.read(progress)
    assert figures["flops_per_second"] == pytest.approx(step_flops(recipe.model, phase) / 2.0)
    assert figures["seconds_left"] == pytest.approx(2.0 * (phase.total_steps - 4))
    assert progress.seconds == 13.0
    assert figures["host_memory"] > 10**7
    assert "mfu" not in figures  # a CPU has no peak in the table
    assert interval_text({"flops_per_second": 5.5e9}) == "5.5 GFLOP/s"
    assert "(MFU" not in interval_text(figures)


def test_durations_have_hours_and_days_only_when_needed() -> None:
    assert [duration(seconds) for seconds in (7, 3599, 3600, 183_600)] == ["0:07", "59:59", "1:00:00", "2d 03:00:00"]
