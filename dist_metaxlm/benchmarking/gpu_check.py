"""Everything that is to be measured on a GPU, in one command and within a budget of time: `make gpu-check`.

Each section is a command of `launch/benchmark.py` in a process of its own: one that crashes or runs out of memory takes
nothing else with it. Sections are told how many seconds are theirs; one that is far beyond them is ended and counts as not
finished.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_metaxlm.benchmarking.kernels import device_or_refusal
from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE
from dist_metaxlm.training.environment import environment

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "benchmark.py"
STORE = "data/quickstart"
MODELS = ("xlmr-base", "xlmr-large", "modern-base")
GRACE = 60.0
"""Seconds that a section may take beyond its own before it is ended."""

Runner = Callable[[list[str], float], tuple[int, str, str]]
"""(arguments of launch/benchmark.py, seconds) -> exit code, standard output, standard error."""


@dataclass(frozen=True)
class Section:
    """A command of `launch/benchmark.py`."""

    name: str
    arguments: tuple[str, ...]
    weight: float
    """Its share of the time that is left when it starts is this, of the weights of all that are left."""
    timed: bool = True
    """Whether it takes --seconds."""


def sections(device: str) -> list[Section]:
    """What is run, the most important first; with "cpu" small stand-ins, to try the command itself."""
    if device == "cpu":
        small = ("--documents", "generated", "--steps", "1", "--batch_tokens", "256", "--rows", "4")
        return [Section("kernels", ("kernels", "--device", "cpu", "--repeats", "1", "--only", "LayerNorm"), 1),
                Section("throughput quickstart", ("throughput", "--recipe", "quickstart", *small), 1)]
    documents: tuple[str, ...] = ("--documents", "store", f"data.directory={STORE}", "data.max_pair_tokens=128")
    if not (Path(STORE) / "store" / "manifest.json").is_file():
        documents = ("--documents", "generated")
    throughput = [Section(f"throughput {recipe}", (
        "throughput", "--recipe", recipe, "--batch_tokens", "32768", "--rows", "64", "--steps", "12", *documents,
        "phases.cross.sequence_length=512"), 1.0) for recipe in MODELS]
    return [Section("kernels", ("kernels",), 2.0), *throughput,
            Section("configurations", ("kernels", "--configurations", "--repeats", "10"), 0.8, timed=False)]


def check_gpu(device: str, minutes: float, say: Callable[[str], None], run: Runner | None = None) -> dict[str, Any]:
    """Run all sections within about `minutes`.

    Returns:
        JSON-ready: each section's result, and by section what is `wrong`, `slower` or `unfinished` (crashed, or no time).

    Raises:
        UserError: there is no such device.
    """
    device_or_refusal(device)
    run, end = run or _run, time.monotonic() + 60 * minutes
    left = sections(device)
    found: list[dict[str, Any]] = []
    while left:
        section, weights = left[0], sum(other.weight for other in left)
        left = left[1:]
        seconds = max(0.0, end - time.monotonic()) * section.weight / weights
        row = _taken(section, seconds, run, begun=bool(found))
        say(f"{section.name}: {row['verdict']} after {row['seconds']:.0f} s")
        found.append(row)
    return {"device": device, "minutes": minutes, "sections": found,
            **{kind: [f"{row['name']}: {what}" for row in found for what in row[kind]]
               for kind in ("wrong", "slower", "unfinished")}, "environment": environment()}


def _taken(section: Section, seconds: float, run: Runner, begun: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"name": section.name, "seconds": 0.0, "result": None, "wrong": [], "slower": [],
                           "unfinished": []}
    if begun and seconds < 5:
        return {**row, "unfinished": ["no time was left"], "verdict": "not run, no time was left"}
    limit = ["--seconds", f"{seconds:.0f}"] if section.timed else []
    name, *rest = section.arguments
    start = time.monotonic()
    code, output, errors = run([name, "--json", *limit, *rest], seconds + GRACE)
    row["seconds"] = time.monotonic() - start
    try:
        row["result"] = json.loads(output)
    except ValueError:
        problem = (errors.strip().splitlines() or ["no output"])[-1]
        return {**row, "unfinished": [f"exit code {code}: {problem}"], "verdict": f"failed with exit code {code}: {problem}"}
    row |= {kind: row["result"].get(kind, []) for kind in ("wrong", "slower")}
    failed = [kind for kind in ("wrong", "slower") if row[kind]]
    if code not in (EXIT_DONE, EXIT_BUG):
        row["unfinished"], failed = [f"exit code {code}"], [*failed, f"exit code {code}"]
    return {**row, "verdict": ", ".join(failed) or "well"}


def _run(arguments: list[str], seconds: float) -> tuple[int, str, str]:
    try:
        done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=seconds,
                              check=False)
    except subprocess.TimeoutExpired:
        return -1, "", f"ended after {seconds:.0f} s"
    return done.returncode, done.stdout, done.stderr
