"""Room for checkpoints on the disk: asked before a phase begins and before each save, not found missing in the middle."""

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
    """Bytes that may still be written where `path` is or will be; None on a file system that does not say."""
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return usage.free if usage.total else None


def check_room(root: Path, recipe: Recipe, phase_name: str, anew: bool = False) -> str | None:
    """Whether `root`, the phase's folder of checkpoints, has room for them; nothing is written.

    What lies there already counts as room, unless the phase starts `anew` and it is set aside. A save needs room for its
    checkpoint before older ones are removed, so there are `training.keep_checkpoints` and one more at once.

    Returns:
        A line of warning where the disk will be full before as many checkpoints are there as will be kept, else None.

    Raises:
        UserError: when there is no room for a single one.
    """
    phase, training = recipe.phase(phase_name), recipe.training
    free, need = free_bytes(root), checkpoint_bytes(recipe.model, phase)
    if free is None:
        return None
    at_once = min(training.keep_checkpoints + 1, -(-phase.total_steps // training.checkpoint_interval))
    asked = (
        f"training.keep_checkpoints {training.keep_checkpoints} has up to {at_once} there at once, {at_once * need:,} bytes"
    )
    # The next save begins by removing what a killed run has left.
    room = free + (0 if anew else _bytes_in(root, ".step-*.tmp"))
    if room < need:
        raise UserError(
            f"a checkpoint of recipe {recipe.name} takes {need:,} bytes ({asked}), and {root} has {room:,} "
            "free; free some, or give a --run_dir on a larger disk"
        )
    fitting = (room + (0 if anew else _bytes_in(root, "step-*"))) // need
    if fitting >= at_once:
        return None
    fewer = f"set training.keep_checkpoints={fitting - 1}, " if fitting > 1 else ""
    return (
        f"{root} has {free:,} bytes free, room for {pluralize(fitting, 'checkpoint')} of {need:,} bytes, and {asked}: "
        f"the run would stop with a full disk; {fewer}free some, or give a --run_dir on a larger disk"
    )


def require_room(root: Path, need: int) -> None:
    """Refuse to begin a save of `need` bytes that the disk has no room for.

    Raises:
        OSError: ENOSPC, as the write that would have failed.
    """
    free = free_bytes(root)
    if free is not None and free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root))


def _bytes_in(root: Path, pattern: str) -> int:
    found = 0
    for path in root.glob(f"{pattern}/*"):
        with contextlib.suppress(FileNotFoundError):  # the last rank of a run that is just ending may clear up here
            found += path.stat().st_size
    return found
