"""Near-duplicates: MinHash signatures (datasketch) cut into bands; documents that share a band are compared.

MinHash: Broder 1997, "On the resemblance and containment of documents". Banding: Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", section 3.4; datasketch chooses the number and length of the bands for the threshold.
datasketch's own index keeps every signature in memory; here bands and signatures go to disk (4 bytes a permutation
and 24 a band for each document) and memory is the same as in deduplication.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dist_metaxlm.preparation.corpus.deduplication import Dropped, Repeated
from dist_metaxlm.preparation.corpus.scripts import UNSPACED
from dist_metaxlm.recipe.data import NearDuplicates

BATCH = 2048
"""N-grams that are hashed by all permutations at once; fits in the processor's cache."""

WEIGHTS = (0.1, 0.9)
"""Costs of a false and a missed candidate in the choice of bands: a false one only costs a comparison."""

_TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


def shingles(text: str, words: int) -> NDArray[np.uint32]:
    """Hashes of the distinct n-grams of words (characters in scripts without spaces), case folded; sorted.

    Empty if the text has fewer than `words` of them: such a text counts as a duplicate only if it is identical.
    """
    tokens = _TOKEN.findall(text.casefold())
    count = len(tokens) - words + 1
    if count < 1:
        return np.zeros(0, np.uint32)
    hashes = np.fromiter((crc32(token.encode()) for token in tokens), np.uint64, len(tokens))
    mixed = np.zeros(count, np.uint64)
    for place in range(words):
        mixed = (mixed ^ hashes[place : place + count]) * np.uint64(0x9E3779B97F4A7C15)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


class NearDuplicateFinder:
    """`add` the documents of a language with ordinals 0, 1, 2, ..., then `find` the near-duplicates of earlier ones."""

    def __init__(self, folder: Path, config: NearDuplicates) -> None:
        from datasketch import MinHash, MinHashLSH  # local import: with SciPy it takes a quarter of a second

        self._config = config
        self._bands = Repeated(folder / "bands")
        self._folder = folder
        self._path = folder / "signatures"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        self._empty = MinHash(num_perm=config.permutations, seed=1, hashfunc=int, scheme="affine32")
        index = MinHashLSH(threshold=config.threshold, num_perm=config.permutations, weights=WEIGHTS)
        self._cuts = [(band, band * index.r, (band + 1) * index.r) for band in range(index.b)]
        self._row = 4 * config.permutations

    def add(self, lines: Sequence[str], ordinal: int) -> None:
        """Add a document."""
        hashes = shingles("\n".join(lines), self._config.words)
        sketch = self._empty.copy()
        for start in range(0, len(hashes), BATCH):
            sketch.update_batch(hashes[start : start + BATCH].tolist())
        signature = sketch.hashvalues.astype("<u4").tobytes()
        self._file.write(signature)
        if len(hashes):
            for band, start, stop in self._cuts:
                part = signature[4 * start : 4 * stop]
                self._bands.add(blake2b(part, digest_size=16, key=band.to_bytes(2, "big")).digest(), ordinal)

    def find(self) -> Dropped:
        """Documents that share a band with an earlier one and agree with it by the threshold. A document may be dropped
        because of one that is itself dropped: only the first of a chain of near-duplicates remains."""
        self._file.close()
        dropped = Dropped(self._folder / "dropped")
        with self._path.open("rb") as file:
            for ordinals, firsts in self._bands.find():
                for start in range(0, len(ordinals), BATCH):
                    part = ordinals[start : start + BATCH]
                    same = self._signatures(file.fileno(), part) == self._signatures(
                        file.fileno(), firsts[start : start + BATCH]
                    )
                    dropped.add(part[same.mean(axis=1) >= self._config.threshold])
        self._path.unlink()
        return dropped

    def _signatures(self, handle: int, ordinals: NDArray[np.uint64]) -> NDArray[np.uint32]:
        rows = b"".join(os.pread(handle, self._row, int(ordinal) * self._row) for ordinal in ordinals)
        return np.frombuffer(rows, "<u4").reshape(-1, self._config.permutations)
