"""Readers of the user's text: UTF-8 paragraphs and tab-separated translation pairs, plain, `.gz` or `.xz`."""

from __future__ import annotations

import glob
import gzip
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from dist_metaxlm.errors import UserError

DOCUMENT_BYTES = 1_000_000
"""A document is cut at the next paragraph after this many bytes, so a file without blank lines fits in memory."""


def expand(patterns: Iterable[str], field: str) -> list[Path]:
    """The files that paths and globs name, each once, sorted inside a glob.

    Errors: UserError naming `field` (a recipe field) and the pattern that names no file, or an empty file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))] or [Path(pattern)]
        files = [path for path in paths if path.is_file()]
        if not files:
            raise UserError(f"{field}: {pattern!r} names no file; correct the path or glob (it is relative to the "
                            "working directory)")
        for path in files:
            if path.stat().st_size == 0:
                raise UserError(f"{field}: {path} is empty; put text into it or take it out of the recipe")
            found[path] = None
    return list(found)


def documents(paths: Iterable[Path]) -> Iterator[list[str]]:
    """Documents of text files, each a list of paragraphs (lines); a blank line or the end of a file ends a document.

    Errors: UserError naming file, line and byte where text is not UTF-8, or a file without any text.
    """
    for path in paths:
        document: list[str] = []
        size = 0
        any_text = False
        for _, line in lines(path):
            text = line.strip()
            if document and (not text or size >= DOCUMENT_BYTES):
                yield document
                document, size = [], 0
            if text:
                document.append(text)
                size += len(line)
                any_text = True
        if document:
            yield document
        if not any_text:
            raise UserError(f"{path} holds no text, only blank lines; put text into it or take it out of the recipe")


def pairs(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Translation pairs (sentence, translation), white space at their ends taken off; a side may be empty.

    Errors: UserError naming file and line where a line has not two columns; as `documents` otherwise.
    """
    for path in paths:
        any_text = False
        for number, line in lines(path):
            if not line.strip():
                continue
            columns = line.split("\t")
            if len(columns) != 2:
                raise UserError(f"{path}, line {number} has {len(columns)} tab-separated columns where a sentence and "
                                "its translation are 2; mend the line or leave it out")
            any_text = True
            yield columns[0].strip(), columns[1].strip()
        if not any_text:
            raise UserError(f"{path} holds no pairs, only blank lines; put pairs into it or take it out of the recipe")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends; a byte order mark is taken off."""
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}, byte {error.start + 1} (0x{raw[error.start]:02X}) is not UTF-8; "
                        f"convert the file, for instance with iconv -f latin1 -t utf-8") from None
                yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise UserError(f"{path} is not a whole {path.suffix} file ({error}); compress or copy it again") from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return path.open("rb")
