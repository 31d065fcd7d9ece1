"""Exact duplicates in bounded memory: keys go to partitions on disk, and each partition fits in memory.

Memory depends on PARTITION_BYTES and BLOCK, not on the amount of text; disk use is 24 bytes a key during the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RECORD = np.dtype([("key", "u1", 16), ("ordinal", "<u8")])
BUFFER_RECORDS = 1 << 17
"""Keys held in memory before they are written to their partitions."""
PARTITION_BYTES = 24 << 20
"""A partition larger than this is split by the next byte of its keys."""
BLOCK = 1 << 22
"""Consecutive ordinals per lookup in the list of dropped ones."""

Ordinals = NDArray[np.uint64]


def text_digest(text: str) -> bytes:
    """16 bytes that identify a text (BLAKE2b; collision probability 1e-18 for 1e10 texts)."""
    return blake2b(text.encode(), digest_size=16).digest()


class Repeated:
    """Finds the records whose key an earlier record has: `add` all of them with ascending ordinals, then `find`."""

    def __init__(self, folder: Path) -> None:
        """This object creates, fills and empties `folder`."""
        self._folder = folder
        folder.mkdir(parents=True)
        self._keys: list[bytes] = []
        self._ordinals: list[int] = []

    def add(self, key: bytes, ordinal: int) -> None:
        """Add a record: a key of 16 bytes, and its ordinal."""
        self._keys.append(key)
        self._ordinals.append(ordinal)
        if len(self._keys) >= BUFFER_RECORDS:
            self._flush()

    def find(self) -> Iterator[tuple[Ordinals, Ordinals]]:
        """Arrays of (ordinal of a repeated record, ordinal of an earlier one with its key); in no particular order.

        An ordinal occurs once for each of its repeated keys.
        """
        self._flush()
        for path in sorted(self._folder.glob("*.keys")):
            yield from _resolve(path, 1)

    def _flush(self) -> None:
        records = np.empty(len(self._keys), RECORD)
        records["key"] = np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 16)
        records["ordinal"] = self._ordinals
        _spread(records, 0, self._folder, "")
        self._keys.clear()
        self._ordinals.clear()


def _spread(records: NDArray[np.void], byte: int, folder: Path, prefix: str) -> None:
    """Append records to the file of their key's byte number `byte`."""
    digits = records["key"][:, byte]
    records = records[np.argsort(digits, kind="stable")]
    counts = np.bincount(digits, minlength=256)
    start = 0
    for digit in np.flatnonzero(counts):
        stop = start + int(counts[digit])
        with (folder / f"{prefix}{digit:02x}.keys").open("ab") as file:
            records[start:stop].tofile(file)
        start = stop


def _resolve(path: Path, byte: int) -> Iterator[tuple[Ordinals, Ordinals]]:
    """Repeated records of one partition file, which is deleted; `byte` is the first byte of the keys that may differ."""
    if path.stat().st_size > PARTITION_BYTES:
        # The same key is often frequent (one line in every document): repeats inside a chunk are removed at once.
        compact = path.with_suffix(".firsts")
        with path.open("rb") as file, compact.open("wb") as firsts:
            while len(chunk := np.fromfile(file, RECORD, PARTITION_BYTES // RECORD.itemsize)):
                kept, repeated = _group(chunk)
                kept.tofile(firsts)
                yield repeated
        compact.replace(path)
    if path.stat().st_size > PARTITION_BYTES and byte < 16:
        with path.open("rb") as file:
            while len(chunk := np.fromfile(file, RECORD, PARTITION_BYTES // RECORD.itemsize)):
                _spread(chunk, byte, path.parent, f"{path.stem}-")
        path.unlink()
        for part in sorted(path.parent.glob(f"{path.stem}-??.keys")):
            yield from _resolve(part, byte + 1)
        return
    yield _group(np.fromfile(path, RECORD))[1]
    path.unlink()


def _group(records: NDArray[np.void]) -> tuple[NDArray[np.void], tuple[Ordinals, Ordinals]]:
    """First records of all keys in order, and (ordinal, ordinal of the first with its key) of the others."""
    words = np.ascontiguousarray(records["key"]).view("<u8")
    order = np.lexsort((records["ordinal"], words[:, 1], words[:, 0]))
    words, ordinals = words[order], records["ordinal"][order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (words[1:] != words[:-1]).any(axis=1)
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))
    # The stable order of ordinals makes this pass and the chunk-wise one choose the same first record.
    kept = records[np.sort(order[fresh])]
    return kept, (ordinals[~fresh].astype(np.uint64), ordinals[first][~fresh].astype(np.uint64))


class Dropped:
    """A set of ordinals on disk, queried in ascending order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self._block = -1
        self._mask = np.zeros(0, bool)

    def add(self, ordinals: Ordinals) -> None:
        """Add ordinals, in any order, any number of times."""
        if not len(ordinals):
            return
        ordinals = np.sort(ordinals)
        blocks, starts = np.unique(ordinals // BLOCK, return_index=True)
        for block, part in zip(blocks, np.split(ordinals, starts[1:]), strict=True):
            with (self._folder / str(int(block))).open("ab") as file:
                part.astype("<u8").tofile(file)

    def __contains__(self, ordinal: int) -> bool:
        block, place = divmod(ordinal, BLOCK)
        if block != self._block:
            self._block, self._mask = block, np.zeros(BLOCK, bool)
            path = self._folder / str(block)
            if path.is_file():
                with path.open("rb") as file:
                    while len(part := np.fromfile(file, "<u8", 1 << 20)):
                        self._mask[part % BLOCK] = True
        return bool(self._mask[place])


def find_repeated(records: Repeated, folder: Path) -> Dropped:
    """The ordinals of all repeated records."""
    dropped = Dropped(folder)
    for ordinals, _ in records.find():
        dropped.add(ordinals)
    return dropped
