"""Cost of data loading: opening a large store, seeking, assembling batches, and the wait for data in a training run.

The stores are generated in a temporary folder: real indexes, and for the opening test sparse `.bin` files (so that
1e10 tokens use no disk). Opening is timed in fresh processes, after the imports, with the files in the page cache.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypedDict

from dist_metaxlm.benchmarking.data.packing import measure_packing
from dist_metaxlm.benchmarking.data.synthetic_store import SyntheticTokenizer, write_store
from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import PhaseConfig
from dist_metaxlm.reporting.metrics import json_lines
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.training.run.environment import environment

LANGUAGES = 100
FAR = 10**9
"""The sample number that the seek goes to."""


class Rate(TypedDict):
    """Tokens per second of one thread, by the clock and of CPU time."""

    wall: float
    cpu: float


class Loading(TypedDict):
    """The result of `measure_loading`."""

    tokens_per_second: dict[str, Rate]
    near_ms: float
    far_ms: float
    far_to_near: float


class Waits(TypedDict):
    """Shares of time that a run waited for data."""

    metrics: str
    intervals: int
    median: float
    first: float
    largest_after_first: float


class DataResult(TypedDict):
    """The result of `measure_data`."""

    languages: int
    opening: dict[str, dict[str, float]]
    large_to_small_seconds: float
    large_to_small_resident: float
    loading: Loading
    data_wait_share: Waits | None
    tlm_packing: dict[str, dict[str, float]] | None
    runs: int
    load_average: float
    environment: Environment


def measure_data(tokens: int, runs: int, metrics: str | None, store: str | None) -> DataResult:
    """All data benchmarks: a store of `tokens` tokens, medians over `runs`; if given, also the wait for data in the training
    run of `metrics`, and the tokens that tlm's windows of `store` lose.

    Raises:
        UserError: the temporary folder has too little space for the indexes, or `metrics` holds no data.
    """
    waits = wait_shares(Path(metrics)) if metrics else None
    packing = measure_packing(Path(store)) if store else None
    with tempfile.TemporaryDirectory(prefix="dist-metaxlm-data-") as name:
        folder = Path(name)
        needed = tokens * 11 // 20 + 2**29  # 20 bytes of index for about 400 tokens, twice the store, and the real tokens
        if shutil.disk_usage(folder).free < needed:
            raise UserError(
                f"{folder.parent} has less than {needed / 2**30:.1f} GiB free; set TMPDIR to another folder, or "
                "give fewer --tokens"
            )
        sizes = {"small": tokens, "large": 10 * tokens}
        for title, size in sizes.items():
            write_store(folder / title, LANGUAGES, size, holes=True)
        # alternating, so that a slow moment of the machine affects both
        opened: dict[str, list[dict[str, float]]] = {title: [] for title in sizes}
        for _ in range(runs):
            for title in sizes:
                opened[title].append(_open_in_a_fresh_process(folder / title))
        opening = {
            title: {"tokens": sizes[title], **{key: statistics.median(row[key] for row in rows) for key in rows[0]}}
            for title, rows in opened.items()
        }
        for title in sizes:
            shutil.rmtree(folder / title)
        write_store(folder / "real", LANGUAGES, min(tokens, 30_000_000), holes=False)
        loading = measure_loading(folder / "real", runs)
    small, large = opening["small"], opening["large"]
    return {
        "languages": LANGUAGES,
        "opening": opening,
        "large_to_small_seconds": large["seconds"] / small["seconds"],
        "large_to_small_resident": large["resident_mb"] / small["resident_mb"],
        "loading": loading,
        "data_wait_share": waits,
        "tlm_packing": packing,
        "runs": runs,
        "load_average": os.getloadavg()[0],
        "environment": environment(),
    }


def measure_loading(folder: Path, runs: int) -> Loading:
    """Tokens per second of one thread by window length, and the cost of a far sample against a near one.

    Wall time, and the thread's CPU time, which other jobs on a shared machine disturb less.
    """
    result: dict[str, Rate] = {}
    for length, batch in ((128, 8192), (512, 32768)):
        for whole_words in (False, True):
            data, phase = _phase_data(folder, length, batch, whole_words)
            read = partial(data.batch, phase.objectives[0], count=batch // length)
            timed = [_seconds(read, first * batch // length) for first in range(20 * runs)][runs:]
            name = f"window {length}, batch {batch}{', whole words' if whole_words else ''}"
            result[name] = {
                "wall": batch / statistics.median(wall for wall, _ in timed),
                "cpu": batch / statistics.median(cpu for _, cpu in timed),
            }
    data, phase = _phase_data(folder, 128, 8192, False)
    read = partial(data.batch, phase.objectives[0], count=64)
    near, far = [], []
    for number in range(20 * runs):
        near.append(_seconds(read, 64 * number)[1])
        far.append(_seconds(read, FAR + 64 * number)[1])
    return {
        "tokens_per_second": result,
        "near_ms": 1e3 * statistics.median(near),
        "far_ms": 1e3 * statistics.median(far),
        "far_to_near": statistics.median(b / a for a, b in zip(near, far, strict=True)),
    }


def wait_shares(path: Path) -> Waits:
    """Share of time that a training run waited for data: median and largest over the log intervals of `path`."""
    try:
        shares = [json.loads(line)["data_wait_share"] for line in json_lines(path)]
    except (OSError, ValueError, KeyError):
        shares = []
    if not shares:
        raise UserError(f"--metrics {path} holds no data_wait_share; give the metrics.jsonl of a run of this version")
    return {
        "metrics": str(path),
        "intervals": len(shares),
        "median": statistics.median(shares),
        "first": shares[0],
        "largest_after_first": max(shares[1:], default=shares[0]),
    }


def open_once(folder: str) -> dict[str, float]:
    """Open a store and make the first batch of its mix: seconds, and peak resident memory."""
    before, start, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    data, phase = _phase_data(Path(folder), 512, 32768, False)
    ready = time.perf_counter()
    data.batch(phase.objectives[0], 0, 64)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "cpu_seconds": time.process_time() - cpu,
        "open_seconds": ready - start,
        "first_batch_seconds": end - ready,
        "resident_mb": _peak_mb(),
        "imports_resident_mb": before,
    }


def _open_in_a_fresh_process(folder: Path) -> dict[str, float]:
    code = (
        "import json, sys; from dist_metaxlm.benchmarking.data.loading import open_once; "
        "print(json.dumps(open_once(sys.argv[1])))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, encoding="utf-8", errors="replace", check=True
    )
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def _phase_data(folder: Path, length: int, batch: int, whole_words: bool) -> tuple[PhaseData, PhaseConfig]:
    phase = PhaseConfig.model_validate(
        {
            "steps": 1000,
            "sequence_length": length,
            "whole_words": whole_words,
            "learning_rate": {"peak": 1.0},
            "objectives": [{"name": "mlm", "batch_tokens": batch}],
        }
    )
    return PhaseData(TokenStore.open(folder), SyntheticTokenizer(), "cross", phase, 1), phase  # type: ignore[arg-type]


def _seconds(read: Callable[[int], object], first: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds of the thread)."""
    wall, cpu = time.perf_counter(), time.thread_time()
    read(first)
    return time.perf_counter() - wall, time.thread_time() - cpu


def _peak_mb() -> float:
    """Peak resident memory of this process; ru_maxrss would include the parent's, because a fresh process inherits it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6
