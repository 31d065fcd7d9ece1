"""Every hang of hangs.py; one of them runs always (test_hang.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hangs import CASES, run_hanging


@pytest.mark.parametrize("case", CASES)
def test_a_hang_is_noticed_and_named(
    case: str,
    start_ranks: Callable[..., list[subprocess.Popen[str]]],
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    summary = run_hanging(start_ranks, tiny_recipe, tmp_path, case, monkeypatch)
    record_property("noticed", summary["noticed"])
