"""Runs that hang at a planted fault, and what must be left of them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import EXIT_AGAIN
from dist_metaxlm.training.checkpointing.checkpoint import newest_checkpoint

LIMIT = 2.0
CASES = {
    "suspended": (2, "step@11:rank1:stop", 1, "preparing the step", "_act"),
    "sleeps": (2, "step@11:rank1:sleep=600", 1, "preparing the step", "_act"),
    "holds the interpreter lock": (2, "step@11:rank1:hold=600", 1, "preparing the step", "_hold_interpreter"),
    "hanging saving thread": (2, "saving.after_files@8:rank1:sleep=600", 1, "saving in the background", "_act"),
    "hanging data worker of one process": (1, "reading@11:rank0:sleep=600", 0, "reading data", "_act"),
}
"""At step 11 the checkpoint of step 4 is complete: saving step 8 has waited for it.

Name -> (ranks, fault, rank to be named, its operation, function that its stacks must show).
"""


def run_hanging(
    start: Callable[..., list[subprocess.Popen[str]]], recipe: Path, folder: Path, case: str, monkeypatch: Any
) -> dict[str, Any]:
    """Run a case to its end and check it; returns the summary of the hang, with `noticed`: seconds from the last step."""
    ranks, fault, wanted, operation, function = CASES[case]
    monkeypatch.setenv("DIST_METAXLM_FAILPOINT", fault)
    # A save that began before the hang must not be named: its usual limit is far above that of a step.
    save = LIMIT if operation == "saving in the background" else 100 * LIMIT
    settings = [f"training.watchdog.limit_seconds={LIMIT}", f"training.watchdog.save_seconds={save}"]
    words = ["--phase", "meta", "--recipe", recipe, "--run_dir", folder / "run", "phases.meta.steps=400", *settings]
    processes = start(ranks, "launch/pretrain.py", *words, "training.log_interval=1", "training.checkpoint_interval=4")
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    ended = time.time()
    phase = folder / "run" / "meta"
    assert [process.returncode for process in processes] == [EXIT_AGAIN] * ranks, errors
    [hang] = (phase / "hangs").iterdir()
    summary: dict[str, Any] = json.loads((hang / "summary.json").read_text())
    assert summary["rank"] == wanted
    assert summary["operation"] == operation
    assert summary["seconds"] <= LIMIT + 5
    assert f"rank {wanted} on " in errors[0]
    assert len(list(hang.glob("rank-*.stacks.txt"))) == ranks
    assert f" in {function}" in (hang / f"rank-{wanted:05d}.stacks.txt").read_text()
    checkpoint = newest_checkpoint(phase / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.facts["step"] >= 4
    return {**summary, "noticed": ended - (phase / "metrics.jsonl").stat().st_mtime}
