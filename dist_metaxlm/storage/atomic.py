"""Files and folders that are complete or absent after a crash: temporary name, fsync, rename."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file atomically and durably: to a temporary name in the same folder, fsync, rename.

    Readers never see a partial file, and a full disk leaves the old one intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk.

    Without the folder's entries a power cut may lose a file that was itself synchronised.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, so that a subsequent rename commits complete files."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
