"""The token store: Megatron's `.bin/.idx` files, opened without copying, checked against their index and manifest.

The format is that of megatron-core's `datasets/indexed_dataset.py`; it is written (preparation/store/writer.py) and read
with numpy alone, so that neither imports the engine. Tests compare writer and reader with megatron-core's own.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.errors import UserError
from dist_metaxlm.text import pluralize

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
_DTYPES: dict[int, type[np.generic]] = {4: np.int32, 5: np.int64, 8: np.uint16}
_CHUNK = 1 << 14
"""Index entries read at a time, so that they stay in the processor's cache."""
_RELEASED = 1 << 18
"""Index entries after which their memory is released: an index of any length is checked in a few megabytes."""

_SCAN = 1 << 22
"""Tokens that are checked together."""
_NAME = re.compile(r"[A-Za-z0-9_]+")


class SourceFile(TypedDict):
    """A file that a corpus was made from."""

    file: str
    bytes: int


class CorpusEntry(TypedDict, total=False):
    """A corpus in the manifest of a store."""

    language: str
    documents: int
    """Of text."""
    pairs: int
    """Of bitext."""
    tokens: int
    bytes: int
    source: list[SourceFile]
    dropped: dict[str, int]
    """Reason -> documents or pairs."""
    weight: float
    """Of a named source, if the recipe gives one."""


class StoreManifest(manifest.Manifest, total=False):
    """The manifest of a store; one that Megatron's tools made lacks the settings."""

    tokenizer_hash: str
    vocab_size: int
    dtype: str
    settings: dict[str, object]
    corpus: dict[str, object]
    heldout: dict[str, object]
    text: dict[str, CorpusEntry]
    bitext: dict[str, CorpusEntry]


def _check_content(directory: Path, content: StoreManifest) -> None:
    """Raise UserError unless the manifest has all entries of a store and describes every file that it names."""

    def damaged(why: str) -> UserError:
        return UserError(f"{directory / manifest.NAME} is damaged ({why}); delete {directory} and run metaxlm prepare again")

    if not isinstance(content.get("tokenizer_hash"), str) or type(content.get("vocab_size")) is not int:
        raise damaged("it has no tokenizer_hash or vocab_size")
    for kind, sides in (("text", 1), ("bitext", 2)):
        listed = content.get(kind)
        if not isinstance(listed, dict) or not all(isinstance(about, dict) for about in listed.values()):
            raise damaged(f"its {kind} is no table of languages")
        for name in listed:
            parts = name.split(".")[0].split("-")
            if len(parts) != sides or not all(_NAME.fullmatch(part) for part in (*parts, *name.split(".")[1:])):
                raise damaged(f"{name[:80]!r} in its {kind} is no language code" + (" pair" if sides == 2 else ""))
            if not {f"{name}.bin", f"{name}.idx"} <= content["files"].keys():
                raise damaged(f"it has no checksums for {name}")


class TokenStore:
    """All languages and language pairs of a prepared folder."""

    def __init__(self, directory: Path, content: StoreManifest) -> None:
        self.directory = directory
        self.manifest = content
        """The manifest as it was written."""
        self.tokenizer_hash: str = content["tokenizer_hash"]
        """SHA-256 of the tokenizer's model file."""
        self.vocab_size: int = content["vocab_size"]
        """Token ids, `<mask>` included."""
        self.languages: list[str] = sorted(content["text"])
        """Languages with text."""
        self.pairs: list[str] = sorted(content["bitext"])
        """Language pairs such as `en-fr`."""

    @classmethod
    def open(cls, directory: str | Path) -> TokenStore:
        """Open a store; reads the manifest and the file sizes, but no file contents.

        Errors: UserError naming the file that is missing or of another size than the manifest says.
        """
        directory = Path(directory)
        content = cast(StoreManifest, manifest.read(directory))
        _check_content(directory, content)
        manifest.check_sizes(directory, content)
        return cls(directory, content)

    def text(self, language: str) -> Corpus:
        """Documents of a language: `<s> ids </s>` each."""
        return self._corpus(language, self.languages, "language", 1)

    def bitext(self, pair: str) -> Corpus:
        """Translation pairs: `<s> ids </s>` and `ids </s>` each."""
        return self._corpus(pair, self.pairs, "language pair", 2)

    def verify(self) -> int:
        """Check sizes and checksums of all files, indices against tokens, ids against the vocabulary.

        Returns how many files. Errors: UserError naming the first bad file and, where bytes have changed, their range.
        """
        count = manifest.verify(self.directory)
        for name in (*self.languages, *self.pairs):
            corpus = self.bitext(name) if name in self.pairs else self.text(name)
            corpus.check_ids(self.vocab_size)
        return count

    def _corpus(self, name: str, known: list[str], kind: str, sequences: int) -> Corpus:
        if name not in known:
            raise UserError(f"the token store {self.directory} has no {kind} {name!r}; it has {', '.join(known) or 'none'}")
        return Corpus(self.directory / name, sequences)


class Corpus:
    """Documents of one `.bin/.idx` pair, mapped into memory.

    Errors, on construction: UserError naming the file if index and tokens contradict each other.
    """

    def __init__(self, prefix: Path, sequences: int = 1) -> None:
        """`prefix`: path without `.bin`; `sequences`: 2 where each document must be a pair; text may have any number."""
        self._index, self._bin = prefix.with_name(f"{prefix.name}.idx"), prefix.with_name(f"{prefix.name}.bin")
        dtype, lengths, pointers, documents = self._read_index()
        self._check(np.dtype(dtype).itemsize, lengths, pointers, documents, sequences)
        self._pointers, self._documents, self._itemsize = pointers, documents, np.dtype(dtype).itemsize
        self._has_pairs = sequences == 2
        self.tokens: np.ndarray = (
            np.memmap(self._bin, dtype=dtype, mode="r") if self._bin.stat().st_size else np.zeros(0, dtype)
        )
        """[tokens] uint16 or int32: all documents, one after the other."""

    @cached_property
    def document_starts(self) -> np.ndarray:
        """[documents + 1] int64: first token of each document, and the number of tokens."""
        starts = np.empty(self._documents.size, np.int64)
        alone = starts.size == self._pointers.size + 1
        for first, last in _parts(starts.size - 1, self._pointers):
            pointers = self._pointers[first:last] if alone else self._pointers[self._documents[first:last]]
            np.floor_divide(pointers, self._itemsize, out=starts[first:last])
        starts[-1] = self.tokens.size
        return starts

    @cached_property
    def second_starts(self) -> np.ndarray:
        """[documents] int64, bitext only: first token of each document's second sequence."""
        if not self._has_pairs:
            raise ValueError(f"{self._bin} holds text, not pairs")
        firsts: np.ndarray = self._pointers[1::2] // self._itemsize
        return firsts

    def __len__(self) -> int:
        """Number of documents."""
        return self._documents.size - 1

    def check_ids(self, vocab_size: int) -> None:
        """Read all tokens. Errors: UserError naming the file with an id outside a vocabulary of this size."""
        for first in range(0, self.tokens.size, _SCAN):
            part = self.tokens[first : first + _SCAN]
            if part.max() >= vocab_size or part.min() < 0:
                bad = int(np.flatnonzero((part >= vocab_size) | (part < 0))[0])
                raise UserError(
                    f"{self._bin} has token {int(part[bad])} at byte {(first + bad) * self._itemsize}, which is "
                    f"not in the vocabulary of {vocab_size}; delete {self._bin.parent} and run "
                    "metaxlm prepare again"
                )

    def _read_index(self) -> tuple[type[np.generic], np.ndarray, np.ndarray, np.ndarray]:
        for path in (self._index, self._bin):
            if not path.is_file():
                raise UserError(f"{path} is missing; delete {path.parent} and run metaxlm prepare again")
        with self._index.open("rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise self._damaged("its header is cut off")
        magic, version, code, sequences, documents = HEADER.unpack(header)
        if magic != MAGIC or version != 1:
            raise self._damaged("it is no Megatron index of version 1")
        if code not in _DTYPES:
            raise self._damaged(f"its token type {code} is none of uint16, int32, int64")
        if not documents or self._index.stat().st_size != HEADER.size + 12 * sequences + 8 * documents:
            raise self._damaged(
                f"it is not as long as {pluralize(sequences, 'sequence')} in "
                f"{pluralize(max(0, documents - 1), 'document')} would be"
            )
        raw = np.memmap(self._index, dtype=np.uint8, mode="r", offset=HEADER.size)
        ends = np.cumsum([4 * sequences, 8 * sequences, 8 * documents])
        lengths, pointers, starts = (
            part.view(kind) for part, kind in zip(np.split(raw, ends[:-1]), (np.int32, np.int64, np.int64), strict=True)
        )
        return _DTYPES[code], lengths, pointers, starts

    def _check(
        self, itemsize: int, lengths: np.ndarray, pointers: np.ndarray, documents: np.ndarray, sequences: int
    ) -> None:
        size, count = self._bin.stat().st_size, lengths.size
        if not documents.size or documents[0] or documents[-1] != count:
            raise self._damaged("its documents do not cover its sequences in order")
        # as many documents as sequences: one each, a faster check than comparing all of them
        alone = documents.size - 1 == count
        for first, last in _parts(documents.size - 1, documents):
            steps = np.diff(documents[first : last + 1])
            if not (steps == 1).all() if alone else (steps < 1).any():
                raise self._damaged("its documents do not cover its sequences in order")
            if sequences == 2 and (steps != 2).any():
                raise self._damaged("a document is not a pair of sequences")
        for first, last in _parts(count, lengths):
            part = lengths[first:last]
            if part.min() < 0:
                raise self._damaged("a sequence has a negative length")
            # Overflow cannot hide a fault: starting from 0, equal steps modulo 2**64 give equal pointers.
            steps = np.diff(pointers[first : last + 1])
            if not np.array_equal(steps, np.multiply(part[: steps.size], itemsize, dtype=np.int64)):
                raise self._damaged("its pointers do not follow from its lengths")
        if count and pointers[0]:
            raise self._damaged("its pointers do not follow from its lengths")
        end = int(pointers[-1]) + itemsize * int(lengths[-1]) if count else 0
        if size != end:
            raise UserError(
                f"{self._bin} has {size} bytes, but its index counts {end}; "
                f"delete {self._bin.parent} and run metaxlm prepare again"
            )

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self._index} is damaged: {why}; delete {self._index.parent} and run metaxlm prepare again")


def token_type(index: Path) -> type[np.generic]:
    """The numpy type of the tokens that an index belongs to; uint16 for an index that is damaged."""
    with index.open("rb") as file:
        header = file.read(HEADER.size)
    return _DTYPES.get(HEADER.unpack(header)[2], np.uint16) if len(header) == HEADER.size else np.uint16


def _parts(count: int, mapped: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of cache-sized runs of `count` entries; releases pages of `mapped` between them."""
    for first in range(0, count, _CHUNK):
        last = min(first + _CHUNK, count)
        yield first, last
        if last % _RELEASED == 0 or last == count:
            _release(mapped)


def _release(mapped: np.ndarray) -> None:
    """Release the pages of a mapped index that have been read: they stay in the page cache, not in process memory."""
    pages = getattr(mapped, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
