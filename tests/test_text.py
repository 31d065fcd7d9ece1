from __future__ import annotations

import re
from pathlib import Path

import pytest

from dist_metaxlm.text import pluralize

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*(ROOT / "dist_metaxlm").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]


@pytest.mark.parametrize(
    ("count", "form", "text"), [(1, "", "1 step"), (0, "", "0 steps"), (2, "", "2 steps"), (1024, ",", "1,024 steps")]
)
def test_one_of_a_kind_has_no_s(count: int, form: str, text: str) -> None:
    assert pluralize(count, "step", form) == text


def test_no_message_says_rank_or_ranks_in_one_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match}"
        for path in SCRIPTS
        for match in re.findall(r"\} [a-z]+\(s\)", path.read_text(encoding="utf-8"))
    ]
    assert not found, found
