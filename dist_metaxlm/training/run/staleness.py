"""Checks whether `cross` started from the current end of `meta`: meta may be lengthened or retrained after cross."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterable
from pathlib import Path

from dist_metaxlm.invocation import as_typed
from dist_metaxlm.training.checkpointing.manifest import list_steps, step_folder, weights_digest
from dist_metaxlm.training.run.run_folder import PhaseFolder

logger = logging.getLogger(__name__)


def stale_cross(run_dir: str | Path) -> str | None:
    """How the meta phase has changed since the run's cross phase started from it; None if it is unchanged.

    Also None if there is no cross phase or it started from something else (`--init_from`).
    """
    meta = PhaseFolder(run_dir, "meta")
    report = meta.path.with_name("cross") / "carry_over.json"
    try:
        began = json.loads(report.read_text(encoding="utf-8"))
        step, digest = int(began["step"]), began.get("weights_digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    steps = list_steps(meta.checkpoints)
    if not steps:
        return None
    if steps[-1] != step:
        return f"cross of {run_dir} began with meta's step {step}, and meta is now at step {steps[-1]}"
    if digest not in (None, weights_digest(step_folder(meta.checkpoints, step))):
        return f"cross of {run_dir} began with meta's step {step}, which has been trained again since and has other weights"
    return None


def warn_of_stale_cross(run_dir: str | Path, recipe: str, overrides: Iterable[str]) -> None:
    """If `stale_cross` finds a change, log a warning with the command that retrains cross."""
    stale = stale_cross(run_dir)
    if stale is not None:
        words = [
            "metaxlm",
            "pretrain",
            "--phase",
            "cross",
            "--resume",
            "never",
            *([] if recipe == "quickstart" else ["--recipe", recipe]),
            "--run_dir",
            str(run_dir),
            *overrides,
        ]
        remedy = as_typed(f"`{shlex.join(words)}` trains cross again from there and keeps the old one in a renamed folder")
        logger.warning(f"{stale}; {remedy}")
