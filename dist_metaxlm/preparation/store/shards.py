"""Shards: fixed ranges of the corpus files, the unit in which a token store is written and resumed.

A shard, and so the store, depends on the corpus alone, not on the number of processes. Its ends are at blank lines (text)
or line ends (bitext) after fixed positions; each shard locates its own ends, without a pass over the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.text import pluralize

SHARD_BYTES = 4 << 20
"""Size of a shard; larger if the corpus would give more than MOST of them."""
MOST = 8192
LINE_BYTES = 64 << 20
"""Longest line; no real paragraph has this length."""
PACKED = (".gz", ".xz", ".zst")
"""Suffixes of compressed files, which cannot be read from the middle: each is one shard."""

Files = Mapping[str, list[Path]]


@dataclass(frozen=True)
class Shard:
    """Part `part` of `parts` of a corpus file."""

    number: int
    """Index among all shards of the corpus."""
    name: str
    """Its name in the store: a language or language pair, or one source of it such as `en.books`."""
    pairs: bool
    """Whether the file holds translation pairs."""
    path: Path
    part: int
    parts: int

    @property
    def language(self) -> str:
        """Language or language pair."""
        return self.name.split(".")[0]

    @property
    def size(self) -> int:
        """Approximate bytes of the file that it covers."""
        return self.path.stat().st_size // self.parts

    def fingerprint(self, settings: Mapping[str, object]) -> str:
        """Identifier of the file's size and time, the shard's position in it, and `settings`."""
        status = self.path.stat()
        about = [str(self.path.resolve()), status.st_size, status.st_mtime_ns, self.part, self.parts, self.name]
        return sha256(json.dumps([about, settings], sort_keys=True).encode()).hexdigest()


def plan(text: Files, bitext: Files) -> list[Shard]:
    """The shards of a corpus, in join order within a language (pair)."""
    total = sum(path.stat().st_size for files in (text, bitext) for paths in files.values() for path in paths)
    size = max(SHARD_BYTES, -(-total // MOST))
    shards: list[Shard] = []
    for files, pairs in ((text, False), (bitext, True)):
        for name, paths in files.items():
            for path in paths:
                parts = 1 if path.suffix in PACKED else max(1, -(-path.stat().st_size // size))
                shards += [Shard(len(shards) + part, name, pairs, path, part, parts) for part in range(parts)]
    return shards


def documents(shard: Shard, whole: bool = True) -> Iterator[list[str]]:
    """Documents of a text shard, each a list of paragraphs, as from `readers.documents`.

    With `whole` false a shard begins and ends at lines, not at documents.
    Errors: UserError naming file, line and byte of text that is not UTF-8, or a line that is too long.
    """
    if shard.path.suffix in PACKED:
        yield from readers.documents([shard.path])
        return
    for block in _text(shard, whole).split("\n\n"):
        paragraphs = [line.strip() for line in block.split("\n")]
        if all(paragraphs) and len(block) < readers.DOCUMENT_BYTES:
            yield paragraphs
        else:
            yield from _cut(block)


def _cut(block: str) -> Iterator[list[str]]:
    """Documents of a text that may be long or have blank lines with white space."""
    document: list[str] = []
    size = 0
    for line in block.split("\n"):
        paragraph = line.strip()
        if document and (not paragraph or size >= readers.DOCUMENT_BYTES):
            yield document
            document, size = [], 0
        if paragraph:
            document.append(paragraph)
            size += len(line)
    if document:
        yield document


def pairs(shard: Shard) -> Iterator[tuple[str, str]]:
    """Translation pairs of a bitext shard, as from `readers.pairs`. Errors: as for `documents`, and a line without two
    columns."""
    if shard.path.suffix in PACKED:
        yield from readers.pairs([shard.path])
        return
    for number, line in enumerate(_text(shard).split("\n")):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) != 2:
            place = f"{shard.path}, line {_lines_before(shard) + number + 1}"
            raise UserError(
                f"{place} has {pluralize(len(columns), 'tab-separated column')} instead of 2 "
                "(sentence, translation); correct the line or leave it out"
            )
        yield columns[0].strip(), columns[1].strip()


def _text(shard: Shard, whole: bool = True) -> str:
    start, stop = span(shard, whole)
    with shard.path.open("rb") as file:
        file.seek(start)
        raw = file.read(stop - start)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = _lines_before(shard) + raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise UserError(
            f"{shard.path}, line {line}, byte {column} (0x{raw[error.start]:02X}) is not UTF-8; "
            "convert the file, for instance with iconv -f latin1 -t utf-8"
        ) from None
    return text.removeprefix("\ufeff") if not start else text


def span(shard: Shard, whole: bool = True) -> tuple[int, int]:
    """First byte of the shard and the one after its last; between documents if `whole`, else between lines."""
    size = shard.path.stat().st_size
    with shard.path.open("rb") as file:
        first, last = (
            _boundary(file, shard, size * part // shard.parts, size, whole and not shard.pairs)
            for part in (shard.part, shard.part + 1)
        )
    return first, last


def _boundary(file: BinaryIO, shard: Shard, at: int, size: int, whole: bool) -> int:
    """The first end of a line from byte `at` on (if `whole`: of a document; if none is near, of a line)."""
    if at <= 0 or at >= size:
        return min(max(at, 0), size)
    file.seek(at - 1)
    _line(file, shard.path)
    while whole and file.tell() < at + readers.DOCUMENT_BYTES:
        if not _line(file, shard.path).strip():
            break
    return file.tell()


def _line(file: BinaryIO, path: Path) -> bytes:
    line = file.readline(LINE_BYTES)
    if len(line) == LINE_BYTES and not line.endswith(b"\n"):
        raise UserError(
            f"{path} has a line of more than {LINE_BYTES >> 20} MiB at byte {file.tell() - LINE_BYTES}; "
            "break it into paragraphs"
        )
    return line


def _lines_before(shard: Shard) -> int:
    """Lines of the file before the shard; counted only for an error that names a line."""
    left, count = span(shard)[0], 0
    with shard.path.open("rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
    return count
