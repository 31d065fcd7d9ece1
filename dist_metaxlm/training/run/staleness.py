"""Whether `cross` still begins where `meta` ends: meta may be made longer, or be trained anew, after cross was trained."""

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
    """What has become of the meta phase that the run's cross phase began with; None where it is as it was.

    None, too, where cross is not there or began with something else (`--init_from`).
    """
    meta = PhaseFolder(run_dir, "meta")
    report = meta.path.with_name("cross") / "carry_over.json"
    try:
        began = json.loads(report.read_text(encoding="utf-8"))
        step, digest = int(began["step"]), began.get("weights_digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    there = list_steps(meta.checkpoints)
    if not there:
        return None
    if there[-1] != step:
        return f"cross of {run_dir} began with meta's step {step}, and meta is now at step {there[-1]}"
    if digest not in (None, weights_digest(step_folder(meta.checkpoints, step))):
        return f"cross of {run_dir} began with meta's step {step}, which has been trained again since and has other weights"
    return None


def warn_of_stale_cross(run_dir: str | Path, recipe: str, overrides: Iterable[str]) -> None:
    """Log a warning where `stale_cross` finds something, with the command that trains cross anew."""
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
        remedy = as_typed(f"`{shlex.join(words)}` trains cross again from there and keeps the old one beside it")
        logger.warning(f"{stale}; {remedy}")
