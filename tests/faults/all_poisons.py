"""Every layout and precision of poison.py; the subset that runs always is in test_poison.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from poison import CASES, TOLERANCES, check_recovery, recovered_curve, run_poisoned


@pytest.fixture(scope="module")
def poisoned(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., str]) -> Any:
    return run_poisoned(run_ranks, tiny_recipe, tmp_path_factory.mktemp("poison"), CASES)


@pytest.fixture(scope="module")
def curve(tiny_recipe: Path) -> list[dict[str, float]]:
    return recovered_curve(tiny_recipe)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_poisoned_run_recovers_the_curve(case: tuple[str, str], poisoned: Any, curve: list[dict[str, float]]) -> None:
    phase, sentence = poisoned[case]
    check_recovery(phase, sentence, curve, TOLERANCES[case[1]])
