"""Digests of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

MISSING = "missing"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal text.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_or_missing(path: Path) -> str:
    """SHA-256 of a file, or `missing` if it cannot be read."""
    try:
        return file_digest(path)
    except OSError:
        return MISSING
