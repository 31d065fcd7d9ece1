"""Temporary folders that do not outlive their process for long, not even after SIGKILL.

Each folder is locked by its process. The next process that makes one deletes those whose lock is free.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = "in-use.lock"


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A new folder `dist_metaxlm-NAME-...` in the temporary directory, deleted on exit; abandoned ones are deleted first."""
    prefix = f"dist_metaxlm-{name}-"
    delete_abandoned(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with (folder / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            inner = folder / "content"
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def delete_abandoned(prefix: str) -> None:
    """Delete this user's folders with a prefix in the temporary directory whose process has ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # in use, or of a process that has not locked it yet
