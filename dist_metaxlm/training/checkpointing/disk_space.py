"""Checks disk space for checkpoints before a phase begins and before each save."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.checkpoint_size import checkpoint_bytes
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.text import pluralize


def free_bytes(path: Path) -> int | None:
    """Free bytes of the file system of `path`, which may not exist yet; None if the file system does not report them."""
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else None


def check_room(root: Path, recipe: Recipe, phase_name: str, from_scratch: bool = False) -> str | None:
    """Check that `root`, the phase's checkpoint folder, has enough free space; writes nothing.

    Existing checkpoints count as free space, unless the phase starts `from_scratch`, which sets them aside. A save needs
    space for its checkpoint before older ones are removed, so up to `training.keep_checkpoints` + 1 exist at once, one more
    with `training.keep_best`.

    Returns:
        A warning if the disk will be full before all checkpoints that are kept fit, else None.

    Raises:
        UserError: if there is not enough space for a single one.
    """
    phase, training = recipe.phase(phase_name), recipe.training
    free, need = free_bytes(root), checkpoint_bytes(recipe.model, phase)
    if free is None:
        return None
    at_once = min(training.keep_checkpoints + training.keep_best + 1, -(-phase.total_steps // training.checkpoint_interval))
    asked = f"training.keep_checkpoints {training.keep_checkpoints} keeps up to {at_once} at once, {at_once * need:,} bytes"
    # The next save first removes the leftovers of a killed run.
    room = free + (0 if from_scratch else _bytes_in(root, ".step-*.tmp"))
    if room < need:
        raise UserError(
            f"a checkpoint of recipe {recipe.name} takes {need:,} bytes ({asked}), and {root} has {room:,} "
            "free; free some space, or give a --run_dir on a larger disk"
        )
    fitting = (room + (0 if from_scratch else _bytes_in(root, "step-*"))) // need
    if fitting >= at_once:
        return None
    fewer = f"set training.keep_checkpoints={fitting - 1}, " if fitting > 1 else ""
    return (
        f"{root} has {free:,} bytes free, room for {pluralize(fitting, 'checkpoint')} of {need:,} bytes, and {asked}: "
        f"the run would stop with a full disk; {fewer}free some space, or give a --run_dir on a larger disk"
    )


def require_room(root: Path, need: int) -> None:
    """Refuse a save of `need` bytes if the disk has less free space.

    Raises:
        OSError: ENOSPC, like the write that would fail.
    """
    free = free_bytes(root)
    if free is not None and free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))


def _bytes_in(root: Path, pattern: str) -> int:
    size = 0
    for path in root.glob(f"{pattern}/*"):
        with contextlib.suppress(FileNotFoundError):  # a rank of a run that is ending may remove files concurrently
            size += path.stat().st_size
    return size
