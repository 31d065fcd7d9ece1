"""All GPU measurements in one command and within a time budget: `make gpu-check`.

Each section is a command of `metaxlm benchmark` in its own process, so a crash or lack of memory affects no other section.
Every section gets a budget of seconds; one that exceeds it by far is stopped and counts as unfinished, but its partial
results are kept.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from dist_metaxlm.benchmarking.kernels.kernels import device_or_refusal
from dist_metaxlm.benchmarking.kernels.partial import partial_result
from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.training.run.environment import environment

STORE = "data/quickstart"
MODELS = ("xlmr-base", "xlmr-large", "modern-base")
KERNELS = {"head": ("head",), "attention": ("attention",), "others": ("Norm", "residual", "GELU", "GeGLU", "rotation")}
"""Name parts of the cases that one process measures: a kernel that breaks the device affects only its group."""
GRACE = 60.0
"""Seconds by which a section may exceed its budget before it is stopped."""
Kind = Literal["wrong", "slower", "unfinished"]
KINDS: tuple[Kind, ...] = ("wrong", "slower", "unfinished")

Runner = Callable[[list[str], float], tuple[int, str, str]]
"""(arguments of `metaxlm benchmark`, seconds) -> exit code, standard output, standard error."""


@dataclass(frozen=True)
class Section:
    """A command of `metaxlm benchmark`."""

    name: str
    arguments: tuple[str, ...]
    weight: float
    """Weight of its share of the remaining time, relative to all remaining sections."""


def sections(device: str) -> list[Section]:
    """The sections, most important first; with "cpu" small stand-ins, to test the command itself."""
    if device == "cpu":
        small = ("--documents", "generated", "--steps", "1", "--batch_tokens", "256", "--rows", "4")
        return [
            Section("kernels", ("kernels", "--device", "cpu", "--repeats", "1"), 1),
            Section("throughput quickstart", ("throughput", "--recipe", "quickstart", *small), 1),
        ]
    documents: tuple[str, ...] = ("--documents", "store", f"data.directory={STORE}", "data.max_pair_tokens=128")
    if not (Path(STORE) / "store" / "manifest.json").is_file():
        documents = ("--documents", "generated")
    throughput = [
        Section(
            f"throughput {recipe}",
            (
                "throughput",
                "--recipe",
                recipe,
                "--batch_tokens",
                "32768",
                "--rows",
                "64",
                "--steps",
                "12",
                *documents,
                "phases.cross.sequence_length=512",
            ),
            1.0,
        )
        for recipe in MODELS
    ]
    kernels = [Section(f"kernels, {name}", ("kernels", "--only", *parts), 0.8) for name, parts in KERNELS.items()]
    return [*kernels, *throughput, Section("configurations", ("kernels", "--configurations", "--repeats", "10"), 0.8)]


class Row(TypedDict):
    """A section that was run."""

    name: str
    seconds: float
    result: dict[str, Any] | None
    """What the command printed, else its partial result."""
    wrong: list[str]
    slower: list[str]
    unfinished: list[str]
    errors: NotRequired[str]
    """End of its standard error, if it is unfinished."""
    verdict: NotRequired[str]


class GpuCheck(TypedDict):
    """The result of `check_gpu`."""

    device: str
    minutes: float
    sections: list[Row]
    wrong: list[str]
    slower: list[str]
    unfinished: list[str]
    environment: Environment


def check_gpu(
    device: str,
    minutes: float,
    say: Callable[[str], None],
    run: Runner,
    keep: Callable[[Mapping[str, object]], None] = lambda so_far: None,
) -> GpuCheck:
    """Run all sections within about `minutes`, each through `run` (`runner`).

    `keep` receives the result so far after every section.

    Returns:
        JSON-ready: the result of each section, and lists of `wrong`, `slower` and `unfinished` (crashed, or no time) items.

    Raises:
        UserError: there is no such device.
    """
    device_or_refusal(device)
    end = time.monotonic() + 60 * minutes
    remaining, machine = sections(device), environment()
    rows: list[Row] = []
    while remaining:
        section, weights = remaining[0], sum(other.weight for other in remaining)
        remaining = remaining[1:]
        seconds = max(0.0, end - time.monotonic()) * section.weight / weights
        row = _taken(section, seconds, run, begun=bool(rows))
        say(f"{section.name}: {row['verdict']} after {row['seconds']:.0f} s")
        rows.append(row)
        keep({"device": device, "minutes": minutes, "sections": rows, "environment": machine})
    return {
        "device": device,
        "minutes": minutes,
        "sections": rows,
        "wrong": _every(rows, "wrong"),
        "slower": _every(rows, "slower"),
        "unfinished": _every(rows, "unfinished"),
        "environment": machine,
    }


def _every(rows: Sequence[Row], kind: Kind) -> list[str]:
    return [f"{row['name']}: {what}" for row in rows for what in row[kind]]


def _taken(section: Section, seconds: float, run: Runner, begun: bool) -> Row:
    row: Row = {"name": section.name, "seconds": 0.0, "result": None, "wrong": [], "slower": [], "unfinished": []}
    if begun and seconds < 5:
        return {**row, "unfinished": ["no time was left"], "verdict": "not run, no time was left"}
    name, *rest = section.arguments
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        code, printed, errors = run(
            [name, "--json", "--output", str(output), "--seconds", f"{seconds:.0f}", *rest], seconds + GRACE
        )
        try:
            row["result"], problem = json.loads(printed), None
        except ValueError:
            row["result"] = partial_result(output)
            problem = f"exit code {code}: {(errors.strip().splitlines() or ['no output'])[-1]}"
    row["seconds"] = time.monotonic() - start
    for kind in KINDS:
        row[kind] = list((row["result"] or {}).get(kind, []))
    if problem is None and code not in (EXIT_DONE, EXIT_BUG):
        problem = f"exit code {code}"
    if problem is not None:
        row["unfinished"].append(problem)
        row["errors"] = errors[-8000:]  # GPU time is scarce: the file must contain the cause of a crash
    return {**row, "verdict": "; ".join([kind for kind in KINDS[:2] if row[kind]] + row["unfinished"]) or "well"}


def runner(program: Sequence[str]) -> Runner:
    """Runs benchmarks; `program` is the words that start `metaxlm benchmark`."""
    return partial(_run, program)


def _run(program: Sequence[str], arguments: list[str], seconds: float) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            [*program, *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        errors = late.stderr.decode("utf-8", "replace") if isinstance(late.stderr, bytes) else late.stderr or ""
        return -1, "", f"{errors}\nended after {seconds:.0f} s"
    return done.returncode, done.stdout, done.stderr
