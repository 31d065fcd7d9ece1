"""Ends a rank whose launcher has ended: otherwise it would train on while the same command is started again.

Imports nothing heavy, so that a rank can begin to watch before it spends seconds on imports.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from dist_metaxlm.errors import EXIT_AGAIN

LOOK_SECONDS, GRACE_SECONDS = 0.5, 8.0
"""Interval of the look at the launcher, and the time in which a rank may save and end after the launcher's death."""
_PR_SET_PDEATHSIG = 1
_LAUNCHERS = (b"deepspeed", b"torchrun", b"torch.distributed", b"torch/distributed")
"""Parts of the command lines of DeepSpeed's and PyTorch's launchers."""


def watch_launcher() -> None:
    """Stop this process gracefully, and end it after `GRACE_SECONDS`, if the launcher that is its parent ends.

    The kernel sends SIGTERM when the parent ends. The `deepspeed` command is the parent's parent; a thread looks at both.
    Other launchers have a daemon on each node that ends the ranks. A shell or a job script may end before its job.
    """
    parent = os.getppid()
    if not sys.platform.startswith("linux") or not _is_launcher(parent):
        return
    above = _parent_of(parent)
    if above is None or not _is_launcher(above):
        above = None
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    threading.Thread(target=_end_after, args=(parent, above), daemon=True, name="launcher watch").start()


def _end_after(parent: int, above: int | None) -> None:
    while os.getppid() == parent and (above is None or _parent_of(parent) == above):
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # as if the launcher had passed it on: save and stop
    time.sleep(GRACE_SECONDS)
    os._exit(EXIT_AGAIN)


def _parent_of(pid: int) -> int | None:
    """Parent of a process; None if it does not run."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return None


def _is_launcher(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    # A launcher is a Python program: a shell script of such a name may end before the job that it has started.
    program = command.split(b"\0", 1)[0].rpartition(b"/")[2]
    return program.startswith((b"python", b"pt_elastic", b"torchrun", b"deepspeed")) and any(
        name in command for name in _LAUNCHERS
    )
