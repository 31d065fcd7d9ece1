"""The manifest of a prepared folder: what it holds, where it came from, and the size and SHA-256 of every file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError

FORMAT = 1
NAME = "manifest.json"


def describe_files(folder: Path) -> dict[str, dict[str, int | str]]:
    """Path inside `folder` -> size in bytes and SHA-256 of every file in it, the manifest left out."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: {"size": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
            for name in names if name != NAME}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of `folder` with its format number and the description of its files."""
    body = json.dumps({"format": FORMAT, **content, "files": describe_files(folder)}, ensure_ascii=False, indent=1)
    (folder / NAME).write_text(body + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`. Errors: UserError if it is missing, unreadable or of another format."""
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} holds no prepared data ({NAME} is missing); run launch/prepare.py first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        number = content["format"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete {folder} and run launch/prepare.py again") from None
    if number != FORMAT:
        raise UserError(f"{path} has format {number} and this version reads {FORMAT}; delete {folder} and run "
                        "launch/prepare.py again")
    return content


def check_sizes(folder: Path, content: dict[str, Any]) -> None:
    """Raise UserError naming the first file that is missing or has another size than when it was written."""
    for name, known in content["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != known["size"]:
            found = "is missing" if size is None else f"has {size} bytes where {known['size']} were written"
            raise UserError(f"{path} {found}; delete {folder} and run launch/prepare.py again")


def verify(folder: Path) -> int:
    """Compare size and SHA-256 of every file with the manifest; returns how many. Errors: UserError, first bad file."""
    content = read(folder)
    check_sizes(folder, content)
    for name, known in content["files"].items():
        if file_hash(folder / name) != known["sha256"]:
            raise UserError(f"{folder / name} is damaged: its checksum is not the one that was written; delete {folder} "
                            "and run launch/prepare.py again")
    return len(content["files"])


def sync(folder: Path) -> None:
    """Bring every file of `folder` to the disk, so that a rename that follows commits whole files."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
