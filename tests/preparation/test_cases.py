"""Files as people have them: the cases of `cases.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("reader_cases", Path(__file__).with_name("cases.py"))
assert _SPEC
assert _SPEC.loader
cases = importlib.util.module_from_spec(_SPEC)
sys.modules["reader_cases"] = cases
_SPEC.loader.exec_module(cases)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: f"{case.row}-{case.name}")
def test_case(case, tmp_path: Path) -> None:
    assert case.observe(tmp_path) == case.expected
