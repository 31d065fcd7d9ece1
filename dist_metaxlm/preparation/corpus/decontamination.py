"""Decontamination: detection of documents that contain a sentence of the evaluation files.

Texts are compared by letters and digits only, compatibility-normalised and case folded. An evaluation text of at
least one window (48 letters; 16 of Han, Kana or Hangul; 32 of Thai, Lao, Burmese or Khmer) is searched for window by
window: at every 48th letter and at its end. A document that has one of these windows anywhere contains the text, also
across line ends. At least half of a short window must be of its script: English names inside Chinese text need 48
letters like any English. A shorter evaluation text matches only a whole line, and below half a window nothing: "Yes." is
not evidence. Memory: the evaluation texts, 16 bytes a window, and one batch of the corpus.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_metaxlm.preparation.corpus.scripts import SYLLABLES, UNSPACED, UNSPACED_LETTERS

WINDOW = 48
SHORT_WINDOWS = ((16, SYLLABLES), (32, (*SYLLABLES, *UNSPACED_LETTERS)))
"""Width of a window, and the scripts of at least half of its letters."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_BITS = 24
PIECE = 1 << 20
"""Letters that are hashed at once, so that a document of any length takes bounded memory."""
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
            hashes = hashes[: len(codes) - width + 1] * power + tail[longest:]
    return hashes


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


def _inside(codes: Codes, ranges: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
    """Whether each code is in one of the ranges."""
    inside = np.zeros(len(codes), bool)
    for first, last in ranges:
        inside |= (codes >= first) & (codes <= last)
    return inside


@dataclass(frozen=True)
class Hit:
    """A document contains an evaluation text."""

    file: str
    """The evaluation file."""
    sentence: str
    """The evaluation text, verbatim."""


class _Windows:
    """Windows of one width, of certain scripts or of any: their hashes, and the text of each."""

    def __init__(self, width: int, scripts: tuple[tuple[int, int], ...] = ()) -> None:
        self.width, self._scripts = width, scripts
        self._hashes: list[Codes] = []
        self._texts: list[int] = []
        self.hashes = np.zeros(0, np.uint64)
        self.texts = np.zeros(0, np.int64)
        self._filter = np.zeros(0, bool)

    def fits(self, normal: str) -> bool:
        """Whether at least half of the letters are of these scripts."""
        return not self._scripts or 2 * int(_inside(_codes(normal), self._scripts).sum()) >= len(normal)

    def add(self, normal: str, text: int) -> int:
        """Add the windows of a text; returns their number."""
        if len(normal) < self.width:
            return 0
        codes = _codes(normal)
        starts = np.unique([*range(0, len(codes) - self.width + 1, self.width), len(codes) - self.width])
        if self._scripts:
            sums = np.concatenate([[0], np.cumsum(_inside(codes, self._scripts))])
            starts = starts[2 * (sums[starts + self.width] - sums[starts]) >= self.width]
        self._hashes.append(window_hashes(codes, self.width)[starts])
        self._texts.append(text)
        return len(starts)

    def freeze(self) -> None:
        """Sort the added windows; a window in several texts belongs to the earliest."""
        if self._hashes:
            texts = np.repeat(self._texts, [len(part) for part in self._hashes])
            self.hashes, first = np.unique(np.concatenate(self._hashes), return_index=True)
            self.texts = texts[first]
        self._hashes.clear()
        self._filter = np.zeros(1 << _BITS, bool)
        self._filter[self.hashes >> np.uint64(64 - _BITS)] = True

    def find(self, codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in `codes` at which a known window starts, and the text of each."""
        if not len(self.hashes) or len(codes) < self.width:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        hashes = window_hashes(codes, self.width)
        places = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _BITS)])
        wanted = hashes[places]
        index = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        known = self.hashes[index] == wanted
        return places[known], self.texts[index[known]]


class EvaluationIndex:
    """Index of the evaluation texts."""

    def __init__(self) -> None:
        self._texts: list[tuple[str, str]] = []
        self._normal: dict[str, int] = {}
        self._short: dict[str, int] = {}
        self._long = _Windows(WINDOW)
        self._short_windows = [_Windows(width, scripts) for width, scripts in SHORT_WINDOWS]

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, file: str, text: str) -> None:
        """Add one evaluation text; of texts with the same letters only the first is kept."""
        normal = letters(text)
        if normal in self._normal:
            return
        unspaced = _UNSPACED.search(normal) is not None
        width = next((kind.width for kind in self._short_windows if unspaced and kind.fits(normal)), WINDOW)
        if 2 * len(normal) < width:
            return
        number = len(self._texts)
        self._texts.append((file, text))
        self._normal[normal] = number
        kinds = [*self._short_windows, self._long] if unspaced else [self._long]
        if not sum(windows.add(normal, number) for windows in kinds):
            self._short[normal] = number

    def freeze(self) -> None:
        """Finish adding texts and prepare for `check`."""
        self._normal.clear()
        for windows in (self._long, *self._short_windows):
            windows.freeze()

    def check(self, documents: Sequence[Sequence[str]]) -> list[Hit | None]:
        """For each document (a list of lines) the first evaluation text that it contains, or None."""
        normal = [[letters(line) for line in lines] for lines in documents]
        texts: list[int | None] = [
            next((self._short[line] for line in lines if line in self._short), None) for lines in normal
        ]
        joined = ["".join(lines) for lines in normal]
        for number, text in self._windows(joined):
            if texts[number] is None:
                texts[number] = text
        return [None if text is None else Hit(*self._texts[text]) for text in texts]

    def _windows(self, joined: list[str]) -> Iterator[tuple[int, int]]:
        """(document, text) of all windows found, document by document in order."""
        whole = "".join(joined)
        ends = np.cumsum([len(text) for text in joined])
        kinds = [self._long, *self._short_windows] if _UNSPACED.search(whole) else [self._long]
        for start in range(0, len(whole), PIECE):
            codes = _codes(whole[start : start + PIECE + WINDOW - 1])
            yield from self._owned(kinds, codes, start, ends)

    def _owned(self, kinds: list[_Windows], codes: Codes, start: int, ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        for windows in kinds:
            places, texts = windows.find(codes)
            places = places + start
            owners = np.searchsorted(ends, places, side="right")
            # A window that extends into the next document of the batch belongs to neither.
            inside = places + windows.width <= ends[owners] if len(places) else np.zeros(0, bool)
            yield from zip(owners[inside].tolist(), texts[inside].tolist(), strict=True)
