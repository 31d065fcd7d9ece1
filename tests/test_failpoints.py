"""Planted faults act at their point, step and rank, and text that is not understood is refused."""

from __future__ import annotations

import errno
import math
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dist_metaxlm import failpoints
from dist_metaxlm.errors import UserError


@pytest.fixture(autouse=True)
def nothing_planted() -> Iterator[None]:
    yield
    failpoints.plant(0, "")


def test_a_fault_acts_on_its_rank_and_step() -> None:
    failpoints.plant(1, "step@3:rank0:raise, step@5-6:rank1:raise, saving.begin:all:eio")
    for step in (3, 4, 7):
        failpoints.reach("step", step)
    for step in (5, 6):
        with pytest.raises(RuntimeError, match=f"failpoint step of step {step}"):
            failpoints.reach("step", step)
    with pytest.raises(OSError, match=r"saving\.begin") as caught:
        failpoints.reach("saving.begin", 100)
    assert caught.value.errno == errno.EIO


def test_factors_multiply_and_are_absent_elsewhere() -> None:
    failpoints.plant(0, "loss@2:all:times=1e4,loss@2:rank0:times=-2,gradient@2:rank0:nan")
    assert failpoints.factor("loss", 2) == -2e4
    assert math.isnan(failpoints.factor("gradient", 2) or 0.0)
    assert failpoints.factor("loss", 3) is None


def test_the_environment_is_read_and_nothing_is_planted_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "step:rank0:sleep=0.05")
    failpoints.plant(0)
    start = time.monotonic()
    failpoints.reach("step", 1)
    assert time.monotonic() - start >= 0.05
    monkeypatch.delenv(failpoints.VARIABLE)
    failpoints.plant(0)
    assert failpoints._planted == ()


def test_kill_is_sigkill() -> None:
    code = "from dist_metaxlm import failpoints as f; f.plant(0, 'step:all:kill'); f.reach('step', 1)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step", "'step' has not the form"),
        ("stepp:rank0:kill", "no point is named 'stepp'"),
        ("step:rank0:nan", "'nan' is no action of point step"),
        ("loss:rank0:kill", "'kill' is no action of point loss"),
        ("step:rank0:explode", "'explode' is no action"),
        ("step:rank0:sleep", "give a number"),
        ("step:rank0:kill=3", "give a number"),
        ("loss:all:times=1e", "'1e' in 'loss:all:times=1e' is no number"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        failpoints.plant(0, text)
