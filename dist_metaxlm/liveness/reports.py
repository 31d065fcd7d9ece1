"""What the ranks did when a run hung: a file for each rank, and the rank that the others wait for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

SUMMARY = "summary.json"


class Report(TypedDict):
    """A rank at the time of the hang."""

    rank: int
    host: str
    pid: int
    operation: str
    step: int
    """In progress, from 1."""
    operations: int
    """Begun since the start, to compare ranks within a step."""
    seconds: float
    """Without a new operation."""
    limit: float
    """Seconds allowed for this operation."""
    suspended: bool
    """By a signal such as SIGSTOP."""
    waiting: bool
    """Whether its main thread is in a collective."""
    hung: bool
    """Whether it was over the limit; else it reports because another rank was."""


def write_report(folder: Path, report: Report) -> None:
    """Write the report of a rank into `folder`, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"rank-{report['rank']:05d}.json", report)


def read_reports(folder: Path) -> list[Report]:
    """The reports written so far, by rank."""
    reports: list[Report] = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank-*.json"))]
    return reports


def culprit(reports: Iterable[Report]) -> Report:
    """The rank that the others wait for: suspended, else not waiting in a collective, else the furthest behind."""
    return min(
        reports,
        key=lambda report: (
            not report["suspended"],
            report["waiting"],
            report["step"],
            report["operations"],
            report["rank"],
        ),
    )


def describe(report: Report) -> str:
    """One line about the rank that the others wait for."""
    state = "is suspended" if report["suspended"] else "makes no progress"
    return (
        f"rank {report['rank']} on {report['host']} {state}: {report['seconds']:.0f} s in {report['operation']} of step "
        f"{report['step']}"
    )


def write_summary(folder: Path, report: Report) -> None:
    """Record the rank that the others wait for, and a sentence about it."""
    _write(folder / SUMMARY, {**report, "sentence": describe(report)})


def hang_sentences(phase_folder: Path) -> dict[str, str]:
    """Sentence about each hang of a phase so far, by its folder."""
    summaries = sorted((phase_folder / "hangs").glob(f"*/{SUMMARY}"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["sentence"] for path in summaries}


def waits_in_collective(stacks: str, saving: bool) -> bool:
    """Whether the main thread (`saving`: that which saves) is in a collective, by faulthandler's text.

    Its frames are innermost first. The main thread takes the signal, and is the last in the text.
    """
    threads = stacks.strip().split("\n\n")
    if saving:
        threads = [thread for thread in threads if " in _copy_and_write" in thread] or threads
    frames = [line for line in threads[-1].splitlines() if line.startswith("  File ")]
    return any("/torch/distributed/" in frame or "/deepspeed/comm/" in frame for frame in frames[:6])


def _write(path: Path, content: object) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
