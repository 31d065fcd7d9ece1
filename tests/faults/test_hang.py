"""A rank that holds the interpreter lock is named, and all ranks end; `make test-faults` has all hangs (all_hangs.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hangs import run_hanging


def test_a_rank_that_holds_the_interpreter_lock_is_named(
    start_ranks: Callable[..., list[subprocess.Popen[str]]],
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_hanging(start_ranks, tiny_recipe, tmp_path, "holds the interpreter lock", monkeypatch)
