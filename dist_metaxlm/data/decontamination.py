"""Decontamination: which documents contain a sentence of the evaluation files.

Texts are compared by their letters and digits alone, compatibility-normalised and case folded. An evaluation text of at
least one window (48 letters; 16 where most are of a script without spaces) is looked for window by window: at every
48th letter and at its end. A document that has one of these anywhere contains it, also across line ends. A shorter
evaluation text counts where a whole line is that text, and not at all below half a window: "Yes." proves nothing.
Memory: the evaluation texts and 8 bytes a window; of the corpus one batch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_metaxlm.data.scripts import UNSPACED

WINDOW, WINDOW_UNSPACED = 48, 16

_UNSPACED = re.compile(f"[{UNSPACED}]")
_BITS = 24
_BASE = np.uint64(0x9E3779B97F4A7C15)

Codes = NDArray[np.uint64]


def letters(text: str) -> str:
    """The letters and digits of a text, NFKC and case folded."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def window_hashes(codes: Codes, width: int) -> Codes:
    """Hash of every window of `width` (a sum of two powers of two, or one) consecutive codes; [len - width + 1]."""
    hashes, length, multiplier = codes, 1, _BASE
    parts: dict[int, tuple[Codes, np.uint64]] = {}
    with np.errstate(over="ignore"):
        while length <= width:
            parts[length] = hashes, multiplier
            if 2 * length <= width:
                hashes = hashes[:-length] * multiplier + hashes[length:]
                multiplier = multiplier * multiplier
            length *= 2
        longest = length // 2
        hashes, _ = parts[longest]
        rest = width - longest
        if rest:
            tail, power = parts[rest]
            hashes = hashes[:len(codes) - width + 1] * power + tail[longest:]
    return hashes


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


@dataclass(frozen=True)
class Hit:
    """A document contains an evaluation text."""

    file: str
    """The evaluation file."""
    sentence: str
    """The text, as it stands there."""


class _Windows:
    """Windows of one width: their hashes, and which text each is of."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._hashes: list[Codes] = []
        self._texts: list[int] = []
        self.hashes = np.zeros(0, np.uint64)
        self.texts = np.zeros(0, np.int64)
        self._filter = np.zeros(0, bool)

    def add(self, normal: str, text: int) -> None:
        found = window_hashes(_codes(normal), self.width)
        self._hashes.append(found[np.unique([*range(0, len(found), self.width), len(found) - 1])])
        self._texts.append(text)

    def freeze(self) -> None:
        """Sort what was added; the earliest text of a window is the one named."""
        if self._hashes:
            texts = np.repeat(self._texts, [len(part) for part in self._hashes])
            self.hashes, first = np.unique(np.concatenate(self._hashes), return_index=True)
            self.texts = texts[first]
        self._hashes.clear()
        self._filter = np.zeros(1 << _BITS, bool)
        self._filter[self.hashes >> np.uint64(64 - _BITS)] = True

    def find(self, codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in `codes` where a known window starts, and the text that each is of."""
        if not len(self.hashes) or len(codes) < self.width:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        hashes = window_hashes(codes, self.width)
        places = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _BITS)])
        wanted = hashes[places]
        index = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        known = self.hashes[index] == wanted
        return places[known], self.texts[index[known]]


class EvaluationIndex:
    """The evaluation texts, for looking documents up in."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, str]] = []
        self._normal: dict[str, int] = {}
        self._short: dict[str, int] = {}
        self._wide, self._dense = _Windows(WINDOW), _Windows(WINDOW_UNSPACED)

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, file: str, text: str) -> None:
        """Take in one evaluation text; the same letters twice are kept once, under the first file."""
        normal = letters(text)
        if normal in self._normal:
            return
        windows = self._dense if 2 * len(_UNSPACED.findall(normal)) > len(normal) else self._wide
        if 2 * len(normal) < windows.width:
            return
        number = len(self._texts)
        self._texts.append((file, text))
        self._normal[normal] = number
        if len(normal) < windows.width:
            self._short[normal] = number
        else:
            windows.add(normal, number)

    def freeze(self) -> None:
        """No more texts: make ready for `check`."""
        self._normal.clear()
        self._wide.freeze()
        self._dense.freeze()

    def check(self, documents: Sequence[Sequence[str]]) -> list[Hit | None]:
        """For each document (a list of lines) the first evaluation text that it contains, or None."""
        normal = [[letters(line) for line in lines] for lines in documents]
        found: list[int | None] = [next((self._short[line] for line in lines if line in self._short), None)
                                   for lines in normal]
        joined = ["".join(lines) for lines in normal]
        for number, text in self._windows(joined):
            if found[number] is None:
                found[number] = text
        return [None if text is None else Hit(*self._texts[text]) for text in found]

    def _windows(self, joined: list[str]) -> Iterator[tuple[int, int]]:
        """(document, text) of all windows found, document by document in order."""
        whole = "".join(joined)
        codes = _codes(whole)
        ends = np.cumsum([len(text) for text in joined])
        kinds = [self._wide, self._dense] if _UNSPACED.search(whole) else [self._wide]
        for windows in kinds:
            places, texts = windows.find(codes)
            owners = np.searchsorted(ends, places, side="right")
            # A window that reaches into the next document of the batch is of neither.
            inside = places + windows.width <= ends[owners] if len(places) else np.zeros(0, bool)
            yield from zip(owners[inside].tolist(), texts[inside].tolist(), strict=True)
