"""The learning rate as a function of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from dist_metaxlm.recipe.schema import LearningRate


def learning_rate_at(step: int, total_steps: int, config: LearningRate) -> float:
    """Learning rate of optimiser step `step` (from 0) of `total_steps`.

    Warm-up is linear and reaches `peak` at step `warmup_steps`; then `linear` and `cosine` fall to `floor * peak` at the
    end, `wsd` stays and falls by 1 - sqrt over its last `decay_steps` (warm-up-stable-decay with the decay shape of
    ModernBERT, arXiv 2412.13663). After the end it stays at `floor * peak`.
    """
    if step < config.warmup_steps:
        return config.peak * (step + 1) / (config.warmup_steps + 1)
    floor = config.floor * config.peak
    if config.schedule == "wsd":
        begin = total_steps - config.decay_steps
        if step < begin or config.decay_steps == 0:
            return config.peak
        done = min(1.0, (step - begin) / config.decay_steps)
        return floor + (config.peak - floor) * (1.0 - math.sqrt(done))
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    share = 0.5 * (1.0 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0 - done
    return floor + (config.peak - floor) * share
