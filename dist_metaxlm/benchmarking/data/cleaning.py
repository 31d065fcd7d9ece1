"""Benchmark of cleaning on generated text: recall of planted duplicates, speed, and memory at two sizes.

The corpus step runs in its own process (`metaxlm prepare corpus`); the kernel reports its peak resident memory.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import yaml

from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.errors import UserError
from dist_metaxlm.invocation import own_command
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.training.run.environment import environment

VOCABULARY = 200_000
LINES, LINE_WORDS = 5, 40
SHARD_DOCUMENTS = 20_000
EXACT, NEAR, CONTAMINATED = 0.05, 0.05, 0.001
"""Share of the documents that repeat an earlier one, repeat one with one word changed, or hold an evaluation sentence."""
REMEMBERED = 5000
"""Fresh documents that repetitions are drawn from."""


class Run(TypedDict):
    """Text of one size."""

    megabytes: int
    documents: int
    seconds: float
    megabytes_per_second: float
    peak_resident_megabytes: float
    planted: dict[str, int]
    """Kind -> documents."""
    dropped: dict[str, int]
    """Step of cleaning -> documents."""
    kept: int


class Cleaning(TypedDict):
    """The result of `measure_cleaning`."""

    benchmark: str
    runs: list[Run]
    environment: Environment


def measure_cleaning(megabytes: list[int]) -> Cleaning:
    """Generate and clean text of each size, in megabytes (1e6 bytes); results with the environment of the measurement."""
    return {"benchmark": "cleaning", "runs": [_run(size) for size in megabytes], "environment": environment()}


def _run(megabytes: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="cleaning-") as name:
        folder = Path(name)
        planted = _generate(folder, megabytes * 1_000_000)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(_recipe(folder)), encoding="utf-8")
        seconds, peak = _prepare(folder)
        corpus: dict[str, Any] = {**manifest.read(folder / "data" / "corpus")}
        facts = corpus["text"]["en"]
    dropped = {step: numbers["documents"] for step, numbers in facts["dropped"].items()}
    return {
        "megabytes": megabytes,
        "documents": facts["read"]["documents"],
        "seconds": round(seconds, 1),
        "megabytes_per_second": round(megabytes / seconds, 2),
        "peak_resident_megabytes": round(peak / 1e6, 1),
        "planted": planted,
        "dropped": dropped,
        "kept": facts["kept"]["documents"],
    }


def _recipe(folder: Path) -> dict[str, object]:
    return {
        "name": "cleaning",
        "model": {"layers": 1, "hidden": 8, "heads": 1, "ffn": 8, "vocab_size": 400},
        "data": {
            "directory": str(folder / "data"),
            "text": {"en": [str(folder / "*.txt")]},
            "cleaning": {
                "deduplicate": ["documents", "lines"],
                "near_duplicates": {"threshold": 0.8},
                "max_characters": 100_000,
                "decontaminate": [str(folder / "evaluation.tsv")],
            },
        },
        "phases": {
            "meta": {
                "steps": 1,
                "sequence_length": 16,
                "learning_rate": {"peak": 1e-3},
                "objectives": [{"name": "mlm", "batch_tokens": 16}],
            }
        },
    }


def _prepare(folder: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of the corpus step."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [*own_command("prepare"), "corpus", "--json", "--recipe", str(folder / "recipe.yaml")],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        said = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"the corpus step ended with exit code {process.returncode}: {said.decode()[-500:]}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def _generate(folder: Path, size: int) -> dict[str, int]:
    """Write shards of text of about `size` bytes and evaluation.tsv; returns how many of each kind were planted."""
    rng = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(VOCABULARY)], dtype=object)
    sentences = [" ".join(words[rng.integers(0, VOCABULARY, 20)]) for _ in range(2000)]
    (folder / "evaluation.tsv").write_text("".join(f"{text}\tlabel\n" for text in sentences), encoding="utf-8")
    planted = {"exact": 0, "near": 0, "contaminated": 0}
    documents = _documents(rng, words, sentences, planted)
    written = shard = 0
    while written < size:
        with (folder / f"shard-{shard:04d}.txt").open("w", encoding="utf-8") as file:
            for _ in range(SHARD_DOCUMENTS):
                if written >= size:
                    break
                written += file.write("\n".join(next(documents)) + "\n\n")
        shard += 1
    return planted


def _documents(
    rng: np.random.Generator, words: np.ndarray, sentences: list[str], planted: dict[str, int]
) -> Iterator[list[str]]:
    remembered: list[list[str]] = []
    while True:
        kind = rng.random()
        if remembered and kind < EXACT + NEAR:
            document = list(remembered[rng.integers(len(remembered))])
            if kind < NEAR:
                document[2] = f"{document[2]} {words[rng.integers(VOCABULARY)]}"
            planted["near" if kind < NEAR else "exact"] += 1
        else:
            ids = rng.integers(0, VOCABULARY, (LINES, LINE_WORDS))
            document = [" ".join(words[row]) for row in ids]
            if kind > 1 - CONTAMINATED:
                document[3] += f" {sentences[rng.integers(len(sentences))]}"
                planted["contaminated"] += 1
            elif len(remembered) < REMEMBERED:
                remembered.append(document)
            else:
                remembered[rng.integers(REMEMBERED)] = document
        yield document
