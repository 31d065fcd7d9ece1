"""The training text of a tokenizer: small blocks from the whole corpus, in a keyed order, up to a quota of bytes.

Only the drawn blocks are read and kept in memory, so neither time nor memory grows with the corpus.
The same corpus gives the same sample in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dist_metaxlm.data.sampling.permutation import key, permute
from dist_metaxlm.preparation.corpus import heldout
from dist_metaxlm.preparation.corpus.heldout import Excluded, HeldOut
from dist_metaxlm.preparation.store import shards
from dist_metaxlm.preparation.store.shards import PACKED, Shard

BLOCK = 8192
"""Bytes; a block holds the lines that begin in it. Large enough to amortise a seek, small enough to mix sources."""

Files = Mapping[str, list[Path]]


class Sample:
    """The training text of one language in the files of a corpus."""

    def __init__(self, language: str, text: Files, bitext: Files, excluded: Excluded) -> None:
        """Files of `language` or of its sources (`en.books`); if it has no text, its sides of the translations."""
        self._language, self._excluded = language, excluded
        names = [(name, False) for name in text if name.split(".")[0] == language] or [
            (name, True) for name in bitext if language in name.split(".")[0].split("-")
        ]
        self._blocks = [
            Shard(0, name, pairs, path, 0, self._count(path))
            for name, pairs in names
            for path in (bitext if pairs else text)[name]
        ]
        self._ends = np.cumsum([shard.parts for shard in self._blocks], dtype=np.int64)
        self.size = sum(_unpacked(shard.path) // (2 if shard.pairs else 1) for shard in self._blocks)
        """Approximate bytes of text."""

    @staticmethod
    def _count(path: Path) -> int:
        return 1 if path.suffix in PACKED else max(1, -(-path.stat().st_size // BLOCK))

    def draw(self, quota: int) -> Iterator[str]:
        """Paragraphs that are not held out, up to `quota` bytes."""
        for index in self._order():
            file = int(np.searchsorted(self._ends, index, side="right"))
            known = self._blocks[file]
            part = index - int(self._ends[file] - known.parts)
            for text in self._paragraphs(Shard(0, known.name, known.pairs, known.path, part, known.parts)):
                yield text
                quota -= len(text.encode())
                if quota <= 0:
                    return

    def _order(self) -> Iterator[int]:
        """All blocks, by index over all files."""
        total, order_key = int(self._ends[-1]), key("tokenizer", self._language)
        for first in range(0, total, 1024):
            yield from permute(np.arange(first, min(first + 1024, total)), total, order_key).tolist()

    def _paragraphs(self, block: Shard) -> Iterator[str]:
        if block.pairs:
            side = block.language.split("-").index(self._language)
            for sides in heldout.training_pairs(shards.pairs(block), block.language, self._excluded, {}):
                yield sides[side]
        else:
            held = HeldOut(self._excluded.get(self._language, set()))
            for document in shards.documents(block, whole=False):
                yield from (text for text in document if text not in held)


def _unpacked(path: Path) -> int:
    return path.stat().st_size * (4 if path.suffix in PACKED else 1)


def corpus_samples(text: Files, bitext: Files, excluded: Excluded) -> dict[str, Sample]:
    """A sample of every language that has text or translations."""
    with_text = {name.split(".")[0] for name in text}
    sides = {code for name in bitext for code in name.split(".")[0].split("-")}
    return {language: Sample(language, text, bitext, excluded) for language in sorted(with_text | sides)}
