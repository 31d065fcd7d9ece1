"""Speed of `metaxlm prepare store` against Megatron's preprocessing, whole commands in one run.

The two alternate; each repeat gives one ratio of each kind and the median is reported, because on a shared machine only
neighbouring runs are comparable. CPU seconds are reported with wall seconds for the same reason.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import own_command
from dist_metaxlm.preparation.prepare import corpus_files, prepare
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.run.environment import environment


def measure_store(recipe_name: str, overrides: list[str], scratch: Path, repeats: int) -> dict[str, object]:
    """Time every way to write the store of a recipe's corpus in `scratch`/store-benchmark, removed at the end.

    Nothing is held out, so that both sides encode the same text; the result says whether their files are equal.
    """
    place = scratch / "store-benchmark"
    if place.exists():
        raise UserError(f"{place} exists; delete it or give another --scratch")
    overrides = [*overrides, f"data.directory={place}", "data.heldout_strings=0"]
    try:
        recipe = load_recipe(recipe_name, overrides)
        prepare(recipe, lambda line: None, until="tokenizer")
        size = sum(path.stat().st_size for files in corpus_files(recipe) for paths in files.values() for path in paths)
        words = ["--recipe", recipe_name, *overrides]
        commands = _commands(words, place / "baseline")
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        same = True
        for _ in range(repeats):
            for name, command in commands.items():
                runs[name].append(_timed(command))
                same &= _take(place, name)
        return {
            "recipe": recipe_name,
            "text_bytes": size,
            "repeats": repeats,
            "identical_files": same,
            "commands": {name: " ".join(map(str, command[1:])) for name, command in commands.items()},
            "seconds": {name: [round(wall, 2) for wall, _ in times] for name, times in runs.items()},
            "cpu_seconds": {name: [round(cpu, 2) for _, cpu in times] for name, times in runs.items()},
            "megabytes_per_second": {
                name: round(size / 1e6 / statistics.median(wall for wall, _ in times), 2) for name, times in runs.items()
            },
            **_ratios(runs),
            "environment": environment(),
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _commands(words: list[str], baseline: Path) -> dict[str, list[str]]:
    theirs = [sys.executable, "-m", "dist_metaxlm.benchmarking.data.store_baseline", "--target", str(baseline)]
    ours = [*own_command("prepare"), "store", *words, "--json"]
    commands = {}
    for workers in ("1", "2"):
        commands[f"baseline_{workers}"] = [*theirs, "--workers", workers, *words]
        commands[f"ours_{workers}"] = [*ours, "--workers", workers]
    if mpirun := shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"):
        for ranks in ("1", "2"):
            commands[f"mpi_{ranks}"] = [mpirun, "-n", ranks, *ours, "--workers", "1"]
    return commands


def _timed(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command with all its processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"{' '.join(command[:6])} ... failed: {done.stderr.strip()[-500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _take(place: Path, name: str) -> bool:
    """Remove the output of a run except the first baseline; returns whether its token files equal the first ones."""
    made, kept = place / ("baseline" if name.startswith("baseline") else "store"), place / "first"
    if not kept.exists():
        made.rename(kept)
        return True
    same = all((made / path.name).read_bytes() == path.read_bytes() for path in kept.iterdir())
    shutil.rmtree(made)
    return same


def _ratios(runs: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Medians over repeats of slower seconds / faster seconds of the same repeat."""
    pairs = {
        "ours_against_baseline_1_core": ("baseline_1", "ours_1"),
        "ours_against_baseline_2_cores": ("baseline_2", "ours_2"),
        "two_processes_against_one": ("ours_1", "ours_2"),
        "two_mpi_ranks_against_one": ("mpi_1", "mpi_2"),
    }
    result = {}
    for name, (slow, fast) in pairs.items():
        if slow in runs:
            sides = list(zip(runs[slow], runs[fast], strict=True))
            result[name] = round(statistics.median(a[0] / b[0] for a, b in sides), 3)
            result[f"{name}_cpu"] = round(statistics.median(a[1] / b[1] for a, b in sides), 3)
    return result
