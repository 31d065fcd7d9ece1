"""Removes the checkpoints that a newer one replaces."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from dist_metaxlm.training.checkpointing.manifest import best_step, list_steps, step_folder

logger = logging.getLogger(__name__)


def prune(root: Path, step: int, keep: int, keep_steps: Collection[int], keep_best: bool) -> None:
    """Keep the newest `keep` checkpoints up to `step`, those of `keep_steps`, and with `keep_best` the best one.

    Later ones are damaged (a resumed run has skipped them): they must not displace intact ones.
    """
    best = best_step(root, step) if keep_best else None
    if best is not None and best[0] == step:
        logger.info(f"checkpoint of step {best[0]} has the best held-out loss so far, {best[1]:.3f} bits per byte; kept")
    for old in [number for number in list_steps(root) if number <= step][:-keep]:
        if old in keep_steps or (best is not None and old == best[0]):
            continue
        shutil.rmtree(step_folder(root, old), ignore_errors=True)
