"""The manifest of a prepared folder: its contents, their origin, and the size and checksums of every file.

Checksums are SHA-256 of each block of 16 MiB, so that damage is named by file and byte range.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from dist_metaxlm.errors import UserError

FORMAT = 2
NAME = "manifest.json"
BLOCK = 16 << 20
"""Bytes covered by one checksum."""


class FileEntry(TypedDict):
    """Size in bytes and SHA-256 of each block of a file."""

    size: int
    sha256: list[str]


class Manifest(TypedDict, total=False):
    """What every manifest has; each kind of folder adds its own fields."""

    format: int
    files: dict[str, FileEntry]


class BlockHasher:
    """Size and checksums of a file while it is written."""

    def __init__(self) -> None:
        self._size, self._blocks, self._open = 0, list[str](), hashlib.sha256()

    def update(self, data: bytes) -> None:
        """Add the next bytes of the file."""
        view = memoryview(data)
        while len(view):
            part = view[: BLOCK - self._size % BLOCK]
            self._open.update(part)
            self._size += len(part)
            if self._size % BLOCK == 0:
                self._blocks.append(self._open.hexdigest())
                self._open = hashlib.sha256()
            view = view[len(part) :]

    def description(self) -> FileEntry:
        """The entry of the bytes so far."""
        rest = [self._open.hexdigest()] if self._size % BLOCK else []
        return {"size": self._size, "sha256": [*self._blocks, *rest]}


def describe_file(path: Path) -> FileEntry:
    """Size in bytes and SHA-256 of each block of a file."""
    hasher = BlockHasher()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            hasher.update(data)
    return hasher.description()


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Path inside `folder` -> description of every file in it except the manifest."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: describe_file(folder / name) for name in names if name != NAME}


def write(folder: Path, content: Mapping[str, object], files: Mapping[str, FileEntry] | None = None) -> None:
    """Write the manifest of `folder` with its format number and the description of its files (default: computed)."""
    described = describe_files(folder) if files is None else dict(sorted(files.items()))
    body = json.dumps({"format": FORMAT, **content, "files": described}, ensure_ascii=False, indent=1)
    (folder / NAME).write_text(body + "\n", encoding="utf-8")


def read(folder: Path) -> Manifest:
    """The manifest of `folder`. Errors: UserError if it is missing, unreadable, of another format, names a file twice or
    one outside the folder."""
    path = folder / NAME
    if not path.is_file():
        remedy = "move it away and run metaxlm prepare again" if folder.is_dir() else "run metaxlm prepare first"
        raise UserError(f"{folder} holds no prepared data ({NAME} is missing); {remedy}")
    try:
        content: Manifest = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_without_repetition)
        number = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f" ({error})" if isinstance(error, _Repeated) else ""
        raise UserError(f"{path} is damaged{what}; delete {folder} and run metaxlm prepare again") from None
    if number != FORMAT:
        raise UserError(
            f"{path} has format {number} and this version reads {FORMAT}; delete {folder} and run metaxlm prepare again"
        )
    files = content.get("files")
    if not isinstance(files, dict):
        raise UserError(f"{path} is damaged (it lists no files); delete {folder} and run metaxlm prepare again")
    for name, known in files.items():
        _check_entry(path, name, known)
    return content


def check_sizes(folder: Path, content: Manifest) -> None:
    """Raise UserError naming the first file that is missing or has another size than when it was written."""
    for name, known in content["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != known["size"]:
            fault = "is missing" if size is None else f"has {size} bytes instead of {known['size']}"
            raise UserError(f"{path} {fault}; delete {folder} and run metaxlm prepare again")


def verify(folder: Path) -> int:
    """Compare size and checksums of every file with the manifest; returns how many files.

    Errors: UserError naming the first bad file and the range of bytes in which it differs.
    """
    content = read(folder)
    check_sizes(folder, content)
    for name, known in content["files"].items():
        for number, digest in enumerate(_block_hashes(folder / name)):
            if digest != known["sha256"][number]:
                last = min(known["size"], (number + 1) * BLOCK) - 1
                raise UserError(
                    f"{folder / name} is damaged between bytes {number * BLOCK} and {last}: the checksum is not "
                    f"the one that was written; delete {folder} and run metaxlm prepare again"
                )
    return len(content["files"])


class _Repeated(ValueError):
    """A name that occurs twice in one object."""


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Repeated(f"it names {twice[:80]!r} twice")
    return content


def _check_entry(path: Path, name: str, known: Any) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or name == NAME:
        raise UserError(
            f"{path} names {name[:80]!r}, which is no file inside {path.parent}; do not use this data, "
            "prepare it again from a source that you trust"
        )
    try:
        size, blocks = known["size"], known["sha256"]
        fits = (
            type(size) is int
            and size >= 0
            and len(blocks) == -(-size // BLOCK)
            and all(isinstance(block, str) for block in blocks)
            and isinstance(blocks, list)
        )
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise UserError(
            f"{path} is damaged (its entry for {name[:80]!r} is not a size and the checksums of its blocks); "
            f"delete {path.parent} and run metaxlm prepare again"
        )


def _block_hashes(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            yield hashlib.sha256(data).hexdigest()
