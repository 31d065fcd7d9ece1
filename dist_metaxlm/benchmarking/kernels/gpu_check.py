"""Everything that is to be measured on a GPU, in one command and within a budget of time: `make gpu-check`.

Each section is a command of `metaxlm benchmark` in a process of its own: one that crashes or runs out of memory takes
nothing else with it. Sections are told how many seconds are theirs; one that is far beyond them is ended and counts as not
finished. What such a one had measured until then is kept.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dist_metaxlm.benchmarking.kernels.kernels import device_or_refusal
from dist_metaxlm.benchmarking.kernels.partial import partial_result
from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE
from dist_metaxlm.training.run.environment import environment

STORE = "data/quickstart"
MODELS = ("xlmr-base", "xlmr-large", "modern-base")
KERNELS = {"head": ("head",), "attention": ("attention",), "others": ("Norm", "residual", "GELU", "GeGLU", "rotation")}
"""Parts of the names of cases that one process measures: a kernel that breaks the device ends those of its group alone."""
GRACE = 60.0
"""Seconds that a section may take beyond its own before it is ended."""
KINDS = ("wrong", "slower", "unfinished")

Runner = Callable[[list[str], float], tuple[int, str, str]]
"""(arguments of `metaxlm benchmark`, seconds) -> exit code, standard output, standard error."""


@dataclass(frozen=True)
class Section:
    """A command of `metaxlm benchmark`."""

    name: str
    arguments: tuple[str, ...]
    weight: float
    """Its share of the time that is left when it starts is this, of the weights of all that are left."""


def sections(device: str) -> list[Section]:
    """What is run, the most important first; with "cpu" small stand-ins, to try the command itself."""
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


def check_gpu(
    device: str,
    minutes: float,
    say: Callable[[str], None],
    run: Runner,
    keep: Callable[[dict[str, Any]], None] = lambda so_far: None,
) -> dict[str, Any]:
    """Run all sections within about `minutes`, each through `run` (`runner`).

    `keep` is given the result so far after every section.

    Returns:
        JSON-ready: each section's result, and by section what is `wrong`, `slower` or `unfinished` (crashed, or no time).

    Raises:
        UserError: there is no such device.
    """
    device_or_refusal(device)
    end = time.monotonic() + 60 * minutes
    left, about = sections(device), environment()
    rows: list[dict[str, Any]] = []
    while left:
        section, weights = left[0], sum(other.weight for other in left)
        left = left[1:]
        seconds = max(0.0, end - time.monotonic()) * section.weight / weights
        row = _taken(section, seconds, run, begun=bool(rows))
        say(f"{section.name}: {row['verdict']} after {row['seconds']:.0f} s")
        rows.append(row)
        keep({"device": device, "minutes": minutes, "sections": rows, "environment": about})
    return {
        "device": device,
        "minutes": minutes,
        "sections": rows,
        **{kind: [f"{row['name']}: {what}" for row in rows for what in row[kind]] for kind in KINDS},
        "environment": about,
    }


def _taken(section: Section, seconds: float, run: Runner, begun: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"name": section.name, "seconds": 0.0, "result": None, **{kind: [] for kind in KINDS}}
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
    row |= {kind: list((row["result"] or {}).get(kind, [])) for kind in KINDS}
    if problem is None and code not in (EXIT_DONE, EXIT_BUG):
        problem = f"exit code {code}"
    if problem is not None:
        row["unfinished"].append(problem)
        row["errors"] = errors[-8000:]  # whoever has the GPU runs this once: what it died of must be in the file
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
