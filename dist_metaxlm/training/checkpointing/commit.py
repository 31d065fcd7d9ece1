"""The renaming that makes a checkpoint valid, and how a job that has taken over a phase prevents that of the job before it.

A suspended process may continue at any instruction, also between its check of the lease and the renaming. Therefore the name
of an unfinished folder belongs to one job, and the next job renames all unfinished folders before it reads which checkpoints
exist. Renaming is atomic, on NFS too: either the old job's checkpoint is complete and is seen, or its renaming fails.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from dist_metaxlm import failpoints
from dist_metaxlm.errors import UserError
from dist_metaxlm.storage.atomic import sync

UNFINISHED = ".step-*.tmp"
_WITHDRAWN = ".withdrawn-"


def unfinished_folder(target: Path, job: str) -> Path:
    """Where a job writes the checkpoint `target` until it is complete."""
    return target.with_name(f".{target.name}.{job}.tmp")


def withdraw_unfinished(root: Path, job: str = "") -> None:
    """Remove the unfinished checkpoints below `root`: all of them, or those of one `job`."""
    for left in root.glob(f".step-*.{job}.tmp" if job else UNFINISHED):
        aside = left.with_name(f"{_WITHDRAWN}{secrets.token_hex(8)}")
        try:
            left.rename(aside)  # first, so that no folder that is half removed can be committed
        except FileNotFoundError:
            continue  # its job has just committed it
        shutil.rmtree(aside, ignore_errors=True)
    for aside in root.glob(f"{_WITHDRAWN}*"):
        shutil.rmtree(aside, ignore_errors=True)


def commit_folder(temporary: Path, target: Path, step: int, may_commit: Callable[[], None]) -> None:
    """Rename the complete folder `temporary` to `target`.

    A folder that is at `target` already, a damaged one that a resumed run has skipped, is replaced; it is put back if the
    renaming fails, because it may be the checkpoint of a job that has taken over.

    Args:
        temporary: of `unfinished_folder`.
        target: of `step_folder`.
        step: for failpoints.
        may_commit: raises UserError if another job has taken over the phase.

    Raises:
        UserError: if another job has taken over, before or after the check.
    """
    may_commit()
    failpoints.reach("saving.committing", step)
    aside = target.with_name(f"{_WITHDRAWN}{secrets.token_hex(8)}")
    replaced = target.exists()
    if replaced:
        target.rename(aside)
    try:
        temporary.rename(target)
    except OSError as error:
        if replaced and not target.exists():
            os.rename(aside, target)
        if not isinstance(error, FileNotFoundError):
            raise
        may_commit()  # the usual reason, with its sentence
        raise UserError(
            f"{temporary} was removed by another process while it was written, so step {step} is not saved; let one job "
            "at a time write into this folder"
        ) from None
    sync(target.parent)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)
