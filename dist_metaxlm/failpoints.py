"""Faults that tests plant in a run: `DIST_METAXLM_FAILPOINT=NAME[@STEP]:rankN:ACTION`, off by default (docs/reliability.md).

The code passes named points (`POINTS`). A planted fault acts on one rank or on all, at every step, at one (`@5`) or at
several (`@5-7`); steps count from 1, as in the metrics. Several faults are separated by commas. While nothing is planted,
a point costs one test of an empty tuple.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import re
import signal
import time
from dataclasses import dataclass

from dist_metaxlm.errors import UserError

VARIABLE = "DIST_METAXLM_FAILPOINT"
POINTS = {
    "step": "before an optimiser step",
    "reading": "before a micro-batch is assembled, in the thread that reads ahead",
    "loss": "the loss of a micro-step",
    "gradient": "the gradient of a micro-step's loss; the loss itself stays as it is",
    "parameter": "a weight after an update, before its copies are compared",
    "saving.begin": "before a checkpoint's files are written",
    "saving.after_files": "after this rank's files of a checkpoint are written",
    "saving.before_commit": "on rank 0, after the manifest is written, before the folder is renamed",
    "saving.committing": "on rank 0, after the lease is checked, before the folder is renamed",
    "saving.after_commit": "on rank 0, after the folder is renamed",
    "evaluating.epoch": "fine-tuning of `metaxlm evaluate`, after the checkpoint of an epoch (the step is the epoch)",
    "evaluating.seed": "fine-tuning, after the figures of a seed are written (the step is the seed)",
    "evaluating.language": "retrieval, after the figures of a language are written (the step counts languages)",
}
"""Name and place of each point."""
_NUMBERS = ("loss", "gradient")
"""Points that a fault changes by a factor; at the others it acts on the process."""
_FACTORS = ("nan", "times")
_FLIPS = ("parameter",)
"""Points at which a fault flips a bit of a tensor."""
_ACTIONS = ("kill", "stop", "sleep", "hold", "raise", "eio", *_FACTORS)
_FORM = re.compile(
    r"(?P<name>[a-z_.]+)(@(?P<first>\d+)(-(?P<last>\d+))?)?:(rank(?P<rank>\d+)|all):(?P<action>[a-z]+)(=(?P<value>[\d.e+-]+))?"
)


@dataclass(frozen=True)
class Fault:
    """A planted fault."""

    name: str
    first: int
    last: float
    action: str
    value: float

    def at(self, name: str, step: int) -> bool:
        """Whether it acts at point `name` of step `step` (from 1)."""
        return self.name == name and self.first <= step <= self.last


_planted: tuple[Fault, ...] = ()


def plant(rank: int, text: str | None = None) -> None:
    """Plant the faults of this rank that `text` describes, by default the environment variable; replaces earlier ones.

    Raises:
        UserError: if the text is not understood.
    """
    global _planted
    text = os.environ.get(VARIABLE, "") if text is None else text
    parts = [part.strip() for part in text.split(",") if part.strip()]
    faults = [_parse(part) for part in parts]
    _planted = tuple(fault for place, fault in faults if place in (None, rank))


def reach(name: str, step: int) -> None:
    """Pass point `name` of step `step` (from 1).

    Raises:
        RuntimeError: if a fault with the action `raise` is planted here.
        OSError: EIO, with the action `eio`.
    """
    for fault in _planted:
        if fault.at(name, step):
            _act(fault, step)


def factor(name: str, step: int) -> float | None:
    """The factor that faults put on the number at point `name` of step `step` (from 1); None without a fault."""
    factors = [math.nan if fault.action == "nan" else fault.value for fault in _planted if fault.at(name, step)]
    return math.prod(factors) if factors else None


def flips(name: str, step: int) -> bool:
    """Whether a fault flips a bit at point `name` of step `step` (from 1)."""
    return any(fault.at(name, step) for fault in _planted)


def _act(fault: Fault, step: int) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault.action == "sleep":
        time.sleep(fault.value)
    if fault.action == "hold":
        _hold_interpreter(fault.value)
    if fault.action == "eio":
        raise OSError(errno.EIO, os.strerror(errno.EIO), f"failpoint {fault.name}")
    if fault.action == "raise":
        raise RuntimeError(f"failpoint {fault.name} of step {step}")


def _hold_interpreter(seconds: float) -> None:
    """Sleep while holding the interpreter lock; signals interrupt a sleep, so it is repeated."""
    library = ctypes.PyDLL(None)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        library.sleep(1000)


def _parse(text: str) -> tuple[int | None, Fault]:
    """(rank, None for all; fault)."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(
            f"{VARIABLE}: {text!r} has not the form NAME[@STEP[-STEP]]:rankN:ACTION[=NUMBER], such as step@5:rank1:kill"
        )
    name, action, value = match["name"], match["action"], match["value"]
    if name not in POINTS:
        raise UserError(f"{VARIABLE}: no point is named {name!r}; points: {', '.join(POINTS)}")
    fitting = _FACTORS if name in _NUMBERS else tuple(word for word in _ACTIONS if word not in _FACTORS)
    if name in _FLIPS:
        fitting = ("flip",)
    if action not in fitting:
        raise UserError(f"{VARIABLE}: {action!r} is no action of point {name}; its actions: {', '.join(fitting)}")
    if (action in ("sleep", "hold", "times")) != (value is not None):
        raise UserError(
            f"{VARIABLE}: {text!r}: give a number with sleep and hold (seconds) and times (a factor), with no other action"
        )
    first = int(match["first"] or 0)
    last = int(match["last"] or first) if match["first"] else math.inf
    return (
        None if match["rank"] is None else int(match["rank"]),
        Fault(name, first, last, action, _number(text, value or "0")),
    )


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{VARIABLE}: {value!r} in {text!r} is no number") from None
