"""Compares a token store with its manifest when a run opens it: some of it before training, the rest in a thread.

The ranks of a node share the blocks of the manifest's checksums. Each first reads up to `AT_ONCE` bytes, beginning with the
first block of every file. The rest is read during training, for at most a tenth of one core of each rank.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.data.tokens.store import token_type
from dist_metaxlm.errors import UserError

AT_ONCE = 256 << 20
"""Bytes that a rank checks before training: 0.2 s at the 1.4 GB/s of SHA-256 on one core, if the disk is as fast."""
PAUSE = 9.0
"""Seconds of pause during training, for each second of checking."""
_INTACT, _CHANGED, _UNKNOWN_ID = 0, 1, 2


@dataclass(frozen=True)
class Block:
    """A range of a file with a checksum of its own."""

    path: Path
    number: int
    digest: str
    size: int
    """Bytes of the whole file."""

    @property
    def start(self) -> int:
        """First byte."""
        return self.number * manifest.BLOCK

    @property
    def end(self) -> int:
        """Last byte."""
        return min(self.size, self.start + manifest.BLOCK) - 1

    def fault(self, vocab_size: int) -> int:
        """Whether its bytes are those that were written, and for tokens, whether all are in the vocabulary."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start + 1)
        if hashlib.sha256(data).hexdigest() != self.digest:
            return _CHANGED
        if self.path.suffix == ".bin" and data:
            tokens = np.frombuffer(data, token_type(self.path.with_suffix(".idx")))
            if tokens.max() >= vocab_size or tokens.min() < 0:
                return _UNKNOWN_ID
        return _INTACT


class DigestCheck:
    """This rank's share in checking a store; all ranks learn of any rank's fault."""

    def __init__(self, directory: Path, vocab_size: int, part: int, parts: int) -> None:
        """`part` of `parts`: this rank among the ranks of its node. Nothing is read yet but the manifest."""
        self._directory, self._vocab_size = directory, vocab_size
        files = manifest.read(directory)["files"]
        self._blocks = [
            Block(directory / name, number, digest, known["size"])
            for name, known in files.items()
            for number, digest in enumerate(known["sha256"])
        ]
        order = sorted(range(len(self._blocks)), key=lambda index: (self._blocks[index].number, index))
        self._own = order[part::parts]
        self._fault = 0  # 0, or a number that tells block and kind to every rank
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Check the first `AT_ONCE` bytes, and start a thread for the rest."""
        read, later = 0, list(self._own)
        while later and read < AT_ONCE and not self._fault:
            index = later.pop(0)
            self._check(index)
            read += self._blocks[index].end - self._blocks[index].start + 1
        if later and not self._fault:
            self._thread = threading.Thread(target=self._check_rest, args=(later,), daemon=True, name="store check")
            self._thread.start()

    def wait(self) -> None:
        """Wait until everything is checked."""
        if self._thread is not None:
            self._thread.join()

    def end(self) -> None:
        """Stop checking."""
        self._end.set()
        self.wait()

    def refuse(self, agree: Callable[[int], int]) -> None:
        """Report a fault that has been noticed so far; `agree`: the largest number of all ranks (collective).

        Raises:
            UserError: on all ranks, naming file and range of bytes.
        """
        fault = agree(self._fault)
        if not fault:
            return
        block = self._blocks[fault // 4]
        remedy = f"delete {self._directory} and run metaxlm prepare again"
        if fault % 4 == _UNKNOWN_ID:
            raise UserError(
                f"{block.path} has tokens between bytes {block.start} and {block.end} that are not in the vocabulary of "
                f"{self._vocab_size}; {remedy}"
            )
        raise UserError(
            f"{block.path} is damaged between bytes {block.start} and {block.end}: the checksum is not the one that was "
            f"written; {remedy}"
        )

    def _check(self, index: int) -> None:
        try:
            kind = self._blocks[index].fault(self._vocab_size)
        except OSError:
            kind = _CHANGED  # a disk that cannot read it
        if kind:
            self._fault = 4 * index + kind

    def _check_rest(self, indices: list[int]) -> None:
        for index in indices:
            start = time.monotonic()
            self._check(index)
            if self._fault or self._end.wait(PAUSE * (time.monotonic() - start)):
                return
