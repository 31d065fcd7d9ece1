"""A poisoned batch costs a step, three of them a return to the last checkpoint, and neither needs a person.

`make test-faults` takes all layouts and precisions (all_poisons.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from poison import TOLERANCES, all_finite, check_recovery, events, records, recovered_curve, run_poisoned

SUBSET = [("ZeRO-0", "fp32"), ("ZeRO-3", "fp32"), ("ZeRO-1", "bf16"), ("PP2 ZeRO-1", "fp32")]


@pytest.fixture(scope="module")
def poisoned(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., str]) -> Any:
    return run_poisoned(run_ranks, tiny_recipe, tmp_path_factory.mktemp("poison"), SUBSET)


@pytest.mark.parametrize("case", SUBSET, ids=" ".join)
def test_a_poisoned_run_recovers_the_curve(case: tuple[str, str], poisoned: Any, tiny_recipe: Path) -> None:
    phase, sentence = poisoned[case]
    check_recovery(phase, sentence, recovered_curve(tiny_recipe), TOLERANCES[case[1]])


def test_poison_without_an_end_ends_with_its_samples(
    tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]
) -> None:
    case = ("ZeRO-2", "bf16")
    phase, sentence = run_poisoned(run_ranks, tiny_recipe, tmp_path, [case], "gradient@11-40:rank0:nan")[case]
    assert "already returned to a checkpoint 3 times" in sentence
    assert "steps 20, 21, 22 made no update" in sentence
    assert "mlm 152 to 175, tlm 76 to 87" in sentence
    assert not (phase / "done.json").exists()
    assert all_finite(phase)
    assert [event["bad"] for event in events(phase, "rollback")] == [[11, 12, 13], [14, 15, 16], [17, 18, 19]]
    assert all(line["loss"] is not None for line in records(phase)[:10])
