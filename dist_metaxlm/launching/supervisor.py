"""Runs a training command and starts it again after an abnormal end, from the last checkpoint (docs/reliability.md)."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from dist_metaxlm.errors import EXIT_AGAIN, EXIT_BUG, EXIT_DONE, EXIT_INTERRUPTED, EXIT_USER, UserError
from dist_metaxlm.launching.supervised_run import SupervisedRun

ATTEMPTS = 3
"""Deaths in a row without a new checkpoint after which the supervisor gives up."""
BACK_OFF_SECONDS = (1.0, 5.0, 15.0)
"""Before a restart, by the number of deaths without a new checkpoint."""
GRACE_SECONDS = 12.0
"""For the ranks after their launcher has ended (they have 8 s of their own, launcher_watch.py); then they are killed."""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
MARK = "DIST_METAXLM_ATTEMPT"
"""Environment variable by which the processes of an attempt are found: torchrun starts each rank in a session of its own."""
_PR_SET_PDEATHSIG = 1
Command = tuple[Sequence[str], Mapping[str, str]]
"""Words and environment."""


class Supervisor:
    """Runs the commands that `build(attempt)`, from 0, returns, one after another, until the phase has ended."""

    def __init__(
        self,
        run: SupervisedRun,
        build: Callable[[int], Command],
        say: Callable[[str], None],
        back_off: Sequence[float] = BACK_OFF_SECONDS,
    ) -> None:
        self._run, self._build, self._say, self._back_off = run, build, say, back_off
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = threading.Event()

    def run(self) -> int:
        """Exit code: that of the command if it has finished (0), was refused (2) or was stopped gracefully (75); 1 after
        `ATTEMPTS` deaths without a new checkpoint. A stop signal is passed on, and the ranks save."""
        before = {number: signal.signal(number, self._stop) for number in _FORWARDED}
        try:
            return self._supervise()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _supervise(self) -> int:
        attempt, deaths = 0, list[str]()
        while True:
            newest, hangs = self._run.newest(), self._run.hangs()
            code = self._run_once(attempt)
            new_hangs = [sentence for name, sentence in self._run.hangs().items() if name not in hangs]
            if self._asked.is_set():
                return code if code in (EXIT_DONE, EXIT_USER) else EXIT_AGAIN
            if code in (EXIT_DONE, EXIT_USER, EXIT_INTERRUPTED) or (code == EXIT_AGAIN and not new_hangs):
                return code
            if code == 128 + signal.SIGUSR1:  # Slurm's warning before there was anything to save
                return EXIT_AGAIN
            if self._run.newest() != newest:
                deaths.clear()
            deaths.append(self._describe(code, new_hangs))
            if len(deaths) == ATTEMPTS:
                self._give_up(deaths)
                return EXIT_BUG
            attempt += 1
            seconds = self._back_off[min(len(deaths), len(self._back_off)) - 1]
            step = self._run.newest()[0]
            begin = f"from the checkpoint of step {step}" if step else "from the beginning"
            self._say(f"restart {attempt}: {deaths[-1]}; going on {begin} in {seconds:.0f} s")
            if self._asked.wait(seconds):
                return EXIT_AGAIN

    def _run_once(self, attempt: int) -> int:
        """Run the command to its end, and end what it has left behind; returns its exit code as a shell has it."""
        try:
            words, environment = self._build(attempt)
        except UserError as error:
            if not attempt:
                raise
            self._say(f"error: {error}")  # a node is not reached, which may pass
            return EXIT_BUG
        if self._asked.is_set():
            return EXIT_AGAIN
        sys.stdout.flush()
        mark = secrets.token_hex(8)
        self._child = subprocess.Popen(
            words,
            env={**environment, MARK: mark},
            start_new_session=True,
            close_fds=False,  # a launcher reads its hostfile from a descriptor (launch_job.py)
            preexec_fn=_end_with_supervisor,
        )
        if self._asked.is_set():  # between the test above and the start
            self._pass_on(signal.SIGTERM)
        code = self._child.wait()
        _end_all(mark)
        self._child = None
        return 128 - code if code < 0 else code

    def _describe(self, code: int, hangs: Sequence[str]) -> str:
        reason = f" ({hangs[0]})" if hangs else ""
        return f"the command ended with exit code {code} after step {self._run.last_step()}{reason}"

    def _give_up(self, deaths: Sequence[str]) -> None:
        last, interval = self._run.last_step(), self._run.recipe.training.log_interval
        samples = self._run.samples(last + 1, last + interval)
        shown = f"; samples of steps {last + 1} to {last + interval}: {samples}" if samples else ""
        self._say(
            f"error: {len(deaths)} attempts without a new checkpoint: {'; '.join(deaths)}{shown}; remove the cause and "
            "start again, which resumes from the last checkpoint"
        )

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()
        self._pass_on(signal.Signals(number))

    def _pass_on(self, number: signal.Signals) -> None:
        child = self._child
        if child is not None:
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                return  # it has just ended


def _end_with_supervisor() -> None:
    """In the child, before it becomes the command: stop gracefully when the supervisor ends, of whatever cause."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_all(mark: str) -> None:
    """Wait for the processes of an attempt on this node; kill those that are left after `GRACE_SECONDS`."""
    deadline = time.monotonic() + GRACE_SECONDS
    while left := _processes_of(mark):
        if time.monotonic() > deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + GRACE_SECONDS
        time.sleep(0.1)


def _processes_of(mark: str) -> list[int]:
    """Processes that were started with `mark` in their environment and have not ended."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # Of another user, or ended meanwhile; one that was not yet waited for has an empty environment.
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
    return pids
