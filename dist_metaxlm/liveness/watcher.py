"""The process next to each rank that ends it after a hang: `python -m dist_metaxlm.liveness.watcher FACTS`.

It is a process of its own, because no thread of a rank runs while another thread holds the interpreter lock or the rank is
suspended. It ends when the rank does: then its standard input, a pipe of the rank, is closed.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TypedDict

from dist_metaxlm.liveness import native_exit
from dist_metaxlm.liveness.operations import (
    BACKGROUND,
    BYTES,
    COUNT,
    LIMIT,
    OPERATION,
    OPERATIONS,
    SAVE_BEGUN,
    SAVE_LIMIT,
    STEP,
)
from dist_metaxlm.liveness.reports import (
    SUMMARY,
    Report,
    culprit,
    describe,
    read_reports,
    waits_in_collective,
    write_report,
    write_summary,
)

LOOK_SECONDS, GATHER_SECONDS, END_SECONDS = 0.5, 5.0, 3.0
"""Between two looks; for the reports of the other ranks; until a rank that does not end is killed."""


class Facts(TypedDict):
    """What a rank tells its watcher."""

    rank: int
    size: int
    host: str
    pid: int
    memory: int
    """Inherited descriptor of the rank's operations."""
    stacks: int
    """Inherited descriptor of the file that the rank's stacks are written to."""
    queue: int | None
    """Inherited descriptor of native_exit.py."""
    signal: int
    """On which the rank writes its stacks."""
    folder: str
    """For the reports of all ranks; made by the first that hangs."""


class Silence:
    """Seconds without a new operation, and without the end of a save in the background.

    Only time in which this process ran counts: the machine may have been suspended, or the whole job by Ctrl-Z.
    """

    def __init__(self) -> None:
        self._count, self._begun = -1.0, 0.0
        self.seconds = self.saving = 0.0

    def look(self, cells: memoryview[float], passed: float, traced: bool) -> None:
        """`passed`: seconds since the last look. `traced`: a debugger holds the rank."""
        passed = 0.0 if traced else min(passed, 2 * LOOK_SECONDS)
        same, self._count = cells[COUNT] == self._count, cells[COUNT]
        self.seconds = self.seconds + passed if same else 0.0
        same, self._begun = cells[SAVE_BEGUN] == self._begun, cells[SAVE_BEGUN]
        self.saving = self.saving + passed if same and self._begun else 0.0


def report_of(facts: Facts, cells: memoryview[float], silence: Silence, state: str) -> Report:
    """The rank's report; `state` as in /proc/PID/stat."""
    saving = bool(silence.saving > cells[SAVE_LIMIT])
    return {
        "rank": facts["rank"],
        "host": facts["host"],
        "pid": facts["pid"],
        "operation": BACKGROUND if saving else OPERATIONS[int(cells[OPERATION])],
        "step": int(cells[STEP]),
        "operations": int(cells[COUNT]),
        "seconds": round(silence.saving if saving else silence.seconds, 1),
        "limit": cells[SAVE_LIMIT] if saving else cells[LIMIT],
        "suspended": state == "T",
        "waiting": False,
        "hung": saving or bool(silence.seconds > cells[LIMIT]),
    }


def watch(facts: Facts) -> None:
    """Look at the rank until it ends, or end it after a hang of any rank."""
    with mmap.mmap(facts["memory"], BYTES) as memory, memoryview(memory).cast("d") as cells:
        silence, last, folder = Silence(), time.monotonic(), Path(facts["folder"])
        while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
            now, state = time.monotonic(), _state(facts["pid"])
            silence.look(cells, now - last, state == "t")
            last = now
            report = report_of(facts, cells, silence, state)
            if report["hung"] or folder.is_dir():
                _end_after_hang(facts, report, folder)
                return


def _end_after_hang(facts: Facts, report: Report, folder: Path) -> None:
    try:
        _gather(facts, report, folder)
    except OSError as error:  # a full disk must not keep a hanging rank alive
        _say(f"{describe(report)}; its report cannot be written ({error})")
    if report["suspended"]:
        os.kill(facts["pid"], signal.SIGCONT)  # the pending signal for the stacks comes first
        time.sleep(LOOK_SECONDS)
        _keep_stacks(facts, folder)
    if facts["queue"] is None or not native_exit.end(facts["queue"]) or not _ends(END_SECONDS):
        os.kill(facts["pid"], signal.SIGKILL)


def _gather(facts: Facts, report: Report, folder: Path) -> None:
    """Write report and stacks, wait for those of the other ranks, and name the rank that they wait for."""
    os.kill(facts["pid"], facts["signal"])
    if not report["suspended"]:
        time.sleep(LOOK_SECONDS)
        report["waiting"] = waits_in_collective(_keep_stacks(facts, folder), report["operation"] == BACKGROUND)
    write_report(folder, report)
    deadline = time.monotonic() + GATHER_SECONDS
    while len(reports := read_reports(folder)) < facts["size"] and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS / 5)
    if facts["rank"] == min(other["rank"] for other in reports):
        slow = culprit(reports)
        write_summary(folder, slow)
        _say(
            f"{describe(slow)}; all ranks stop. Their stacks are in {folder}; run the same command again to resume from "
            "the last checkpoint"
        )
    while not (folder / SUMMARY).exists() and time.monotonic() < deadline + END_SECONDS:
        time.sleep(LOOK_SECONDS / 5)  # a launcher ends the other ranks and their watchers when one rank has ended


def _keep_stacks(facts: Facts, folder: Path) -> str:
    """Copy the rank's stacks into `folder`; returns them."""
    text = os.pread(facts["stacks"], os.fstat(facts["stacks"]).st_size, 0).decode(errors="replace")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank-{facts['rank']:05d}.stacks.txt").write_text(text, encoding="utf-8")
    return text


def _ends(seconds: float) -> bool:
    """Whether the rank ends within `seconds`."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _say(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n")
    sys.stderr.flush()


def _state(pid: int) -> str:
    """Letter of the process's state; empty if it has ended, or without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # for the ranks, which save; this process ends with its rank
    watch(json.loads(sys.argv[1]))
