"""A damaged text file is read or refused in a sentence; `make fuzz` tries 10,000."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("damaged_files", Path(__file__).with_name("damaged_files.py"))
assert _SPEC
assert _SPEC.loader
damaged_files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(damaged_files)


def test_undamaged_files_are_read(tmp_path: Path) -> None:
    for name, content, read in damaged_files.SAMPLES:
        (tmp_path / name).write_bytes(content)
        read(tmp_path / name)


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = Counter(damaged_files.read_damaged(tmp_path, seed) for seed in range(400))
    refused = sum(count for outcome, count in outcomes.items() if outcome.endswith("refused"))
    assert 100 < refused < 350
