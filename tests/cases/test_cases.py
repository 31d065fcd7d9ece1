"""Situations of bug reports: all cases that need no run of a command; `make check-cases` has the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import case_corpora
import case_lines
import case_models
import case_start
import case_tasks

CASES = [case for module in (case_lines, case_corpora, case_models, case_start, case_tasks) for case in module.CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row}-{case.name}")
def test_case(case, tmp_path: Path) -> None:
    assert case.observe(tmp_path) == case.expected
