from __future__ import annotations

from dist_metaxlm.recipe.schema import LearningRate
from dist_metaxlm.training.run.announcement import warmup_warning


def test_a_warm_up_that_outlasts_the_phase_is_named_with_both_numbers() -> None:
    config = LearningRate(peak=0.002, warmup_steps=20)
    assert warmup_warning("meta", 21, config) is None
    warning = warmup_warning("meta", 20, config)
    assert warning is not None
    assert "phases.meta.learning_rate.warmup_steps=20 is not below the 20 steps" in warning
    assert "never reaches its peak of 0.002" in warning
