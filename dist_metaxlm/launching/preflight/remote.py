"""Client of a node's preflight agent: starts it over ssh and sends requests with a time limit."""

from __future__ import annotations

import json
import os
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dist_metaxlm.launching.preflight.agent import MARK

_CLOCK_QUESTIONS = 5
_AT_ONCE = 64
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")


def unreachable(hosts: Sequence[str]) -> dict[str, str]:
    """Hosts on which ssh cannot run a command without a prompt, with ssh's error; all are tried in parallel."""

    def attempt(host: str) -> str:
        done = subprocess.run(
            [*SSH, "--", host, "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        lines = done.stderr.strip().splitlines()
        return "" if done.returncode == 0 else lines[-1] if lines else f"ssh ended with {done.returncode}"

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return {host: reason for host, reason in zip(hosts, pool.map(attempt, hosts), strict=True) if reason}


class Unanswered(Exception):
    """A node that did not answer; the text says why."""


class Agent:
    """A preflight agent on `host`, started by `program` in this folder; both must exist on the host as well."""

    def __init__(self, host: str, program: Sequence[str]) -> None:
        words = ["cd", os.getcwd(), "&&", "exec", *program, "--agent"]
        line = " ".join(word if word == "&&" else shlex.quote(word) for word in words)
        self.host = host
        self._process = subprocess.Popen(
            [*SSH, "--", host, line],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._errors: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self._error_reader = threading.Thread(target=self._read_errors, daemon=True)
        self._error_reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(json.loads(line.removeprefix(MARK)))
        self._answers.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-20:], line.strip()]

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            Unanswered: after `seconds`, or when the connection has closed.
        """
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise Unanswered(f"no answer within {seconds:.0f} s") from None
        if answer is None:
            self._error_reader.join(2.0)
            raise Unanswered(
                next((line for line in reversed(self._errors) if line), "the connection closed without an error message")
            )
        return answer

    def ask(self, kind: str, seconds: float, **question: Any) -> dict[str, Any]:
        """Ask and wait for the answer; raises `Unanswered`."""
        assert self._process.stdin is not None
        try:
            print(json.dumps({"ask": kind, **question}), file=self._process.stdin, flush=True)
        except OSError:
            raise Unanswered("the connection has ended") from None
        return self.answer(seconds)

    def clock_offset(self) -> float:
        """Seconds that the node's clock is ahead of ours, by the fastest of a few requests."""
        best = (float("inf"), 0.0)
        for _ in range(_CLOCK_QUESTIONS):
            before = time.time()
            theirs = self.ask("clock", 10.0)["clock"]
            after = time.time()
            best = min(best, (after - before, theirs - (before + after) / 2))
        return round(best[1], 3)

    def close(self) -> None:
        """Close the connection, which ends the agent."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=2)
        except (OSError, subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait()
