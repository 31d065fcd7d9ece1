from __future__ import annotations

import pytest

from dist_metaxlm.recipe.schema import LearningRate
from dist_metaxlm.training.loop.schedule import learning_rate_at


def rates(config: LearningRate, total: int) -> list[float]:
    return [learning_rate_at(step, total, config) for step in range(total)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_warmup_rises_and_the_end_falls_to_the_floor(schedule: str) -> None:
    config = LearningRate(peak=1.0, schedule=schedule, warmup_steps=10, decay_steps=20, floor=0.1)  # type: ignore[arg-type]
    curve = rates(config, 100)
    assert curve[0] > 0
    assert all(later > earlier for earlier, later in zip(curve[:10], curve[1:11], strict=True))
    assert max(curve) == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in zip(curve[10:], curve[11:], strict=False))
    assert learning_rate_at(100, 100, config) == pytest.approx(0.1)
    assert learning_rate_at(1000, 100, config) == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay() -> None:
    curve = rates(LearningRate(peak=2.0, schedule="wsd", warmup_steps=5, decay_steps=10), 50)
    assert curve[5:40] == [2.0] * 35
    assert curve[41] < 2.0


def test_linear_without_warmup_is_a_straight_line() -> None:
    assert rates(LearningRate(peak=1.0), 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
