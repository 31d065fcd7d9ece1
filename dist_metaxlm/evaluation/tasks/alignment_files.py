"""Parallel sentences split into words, with reference links between the words: gold alignments or a dictionary.

Gold alignments are read in the two formats in which gold sets are distributed:
- Pharaoh (also `.talp`): line n has the links of pair n, `3-4` sure, `3p4` or `3?4` possible; counted from 0.
- NAACL (shared tasks of 2003 and 2005, web.eecs.umich.edu/~mihalcea/wpt05): a link a line, `pair position position [S|P]`,
  counted from 1, sure by default; a negative position (a word without a partner) is skipped. Pairs are
  numbered by `<s snum=0001>...</s>` around both sentences, or else in order (`_by_line`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.files import lines, shown
from dist_metaxlm.text import pluralize

Format = Literal["pharaoh", "naacl"]
Link = tuple[int, int]
Found = tuple[str, int, Link, bool]
"""(file and line, index of the pair, the link as written, whether it is sure)."""
_PHARAOH = re.compile(r"(\d{1,9})([-p?])(\d{1,9})")
_NAACL = re.compile(r"(\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})(?:\s+([SP]))?(?:\s+[\d.]+)?")
_NUMBERED = re.compile(r"<s snum=(\d{1,9})>(.*)</s>", re.DOTALL)
BASES: dict[str, int] = {"pharaoh": 0, "naacl": 1}
"""Number of the first word in each format, unless a task sets another."""


@dataclass(frozen=True)
class AlignedText:
    """N pairs of sentences and their reference links. Links are (English word, other word), counted from 0."""

    english: list[list[str]]
    other: list[list[str]]
    sure: list[set[Link]]
    """Sure links; for a dictionary, all pairs of words that it lists."""
    possible: list[set[Link]]
    """Possible links, including the sure ones."""
    facts: dict[str, Any]
    """`reference` (gold or dictionary), and for gold the `format`, `base` and `first` side with which the file was read."""


@dataclass(frozen=True)
class GoldSettings:
    """How to read a gold file."""

    english_first: bool
    """Whether the first number of a link is the English word."""
    format: Format | None = None
    """None: detected from the first line."""
    base: int | None = None
    """Number of the first word, 0 or 1; None: the default of the format."""


def read_gold(pairs: Sequence[tuple[str, str]], path: Path, settings: GoldSettings) -> AlignedText:
    """Pairs of (English, other) sentences with the gold alignments of a file.

    Errors: UserError naming file and line of an invalid link or of a word or pair that does not exist; or the file if its
    number of lines differs from the number of pairs, or if it has no link.
    """
    numbered, english, other = _words(pairs, path)
    entries = [(f"{shown(path)}, line {number}", line.strip()) for number, line in lines(path)]
    first = next((line for _, line in entries if line), "")
    form: Format = settings.format or ("naacl" if _NAACL.fullmatch(first) else "pharaoh")
    base = BASES[form] if settings.base is None else settings.base
    sure: list[set[Link]] = [set() for _ in pairs]
    possible: list[set[Link]] = [set() for _ in pairs]
    if form == "pharaoh" and len(entries) != len(pairs):
        raise UserError(
            f"{shown(path)} has {pluralize(len(entries), 'line')} of links for {pluralize(len(pairs), 'pair')} of "
            "sentences; line n belongs to pair n, so give as many"
        )
    for where, pair, place, is_sure in _pharaoh(entries) if form == "pharaoh" else _naacl(entries, numbered, len(pairs)):
        sides = (english[pair], other[pair]) if settings.english_first else (other[pair], english[pair])
        link = _checked(place, sides, base, where)
        link = link if settings.english_first else link[::-1]
        possible[pair].add(link)
        if is_sure:
            sure[pair].add(link)
    if not any(possible):
        raise UserError(f"{shown(path)} holds no link, so nothing can be scored; use the file with its links")
    facts = {"reference": "gold", "format": form, "base": base, "first": "english" if settings.english_first else "other"}
    return AlignedText(english, other, sure, possible, facts)


def read_dictionary(pairs: Sequence[tuple[str, str]], path: Path, pivot_column: int = 1) -> AlignedText:
    """Pairs of sentences with the links that a dictionary lists: two words per line, separated by a tab or space.

    Words are compared without case and without punctuation at their ends; `pivot_column` is 1 if the English word is
    first. Errors: UserError naming a line without exactly two words, or the file if none of its words is in any pair.
    """
    listed: set[tuple[str, str]] = set()
    for number, line in lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise UserError(
                f"{shown(path)}, line {number} has {pluralize(len(cells), 'column')} where a word and its "
                "translation belong; write two words with a tab between them"
            )
        first, second = map(_plain, cells)
        listed.add((first, second) if pivot_column == 1 else (second, first))
    _, english, other = _words(pairs, path)
    links = [
        {(i, j) for i, a in enumerate(map(_plain, left)) for j, b in enumerate(map(_plain, right)) if (a, b) in listed}
        for left, right in zip(english, other, strict=True)
    ]
    if not any(links):
        raise UserError(
            f"{shown(path)} lists no two words that are in a sentence and its translation; give the dictionary "
            "of these two languages, English in the column given by pivot_column"
        )
    return AlignedText(english, other, links, links, {"reference": "dictionary", "entries": len(listed)})


def _words(pairs: Sequence[tuple[str, str]], path: Path) -> tuple[dict[int, int] | None, list[list[str]], list[list[str]]]:
    """(`snum` of `<s snum=...>` -> index of the pair, None without such tags; English words; other words)."""
    matches = [tuple(map(_NUMBERED.fullmatch, pair)) for pair in pairs]
    if not all(a and b for a, b in matches):
        return None, [a.split() for a, _ in pairs], [b.split() for _, b in pairs]
    numbers: dict[int, int] = {}
    for place, (a, b) in enumerate(matches):
        assert a is not None
        assert b is not None
        if int(a[1]) != int(b[1]) or int(a[1]) in numbers:
            raise UserError(
                f"the sentences of {shown(path)}: pair {place + 1} is numbered {a[1]} and {b[1]}; number both "
                "sides alike, each pair once"
            )
        numbers[int(a[1])] = place
    return numbers, [a[2].split() for a, _ in matches if a], [b[2].split() for _, b in matches if b]


def _pharaoh(entries: list[tuple[str, str]]) -> Iterator[Found]:
    for pair, (where, line) in enumerate(entries):
        for word in line.split():
            match = _PHARAOH.fullmatch(word)
            if match is None:
                raise UserError(
                    f"{where} has {word!r}, which is no link; write 3-4, or 3p4 or 3?4 for a possible one, or "
                    "name the format in gold_format"
                )
            yield where, pair, (int(match[1]), int(match[3])), match[2] == "-"


def _naacl(entries: list[tuple[str, str]], numbered: dict[int, int] | None, count: int) -> Iterator[Found]:
    links = []
    for where, line in entries:
        match = _NAACL.fullmatch(line)
        if match is None and line:
            raise UserError(
                f"{where} is no link ({line[:40]!r}); write `pair position position` and S or P, or name the "
                "format in gold_format"
            )
        if match is not None and "-" not in line:
            links.append((where, int(match[1]), (int(match[2]), int(match[3])), match[4] != "P"))
    numbers = numbered if numbered is not None else _by_line(sorted({number for _, number, *_ in links}), count)
    for where, number, link, is_sure in links:
        if number not in numbers:
            raise UserError(
                f"{where} names pair {number}, and there are {len(numbers)}, from {min(numbers)} to "
                f"{max(numbers)}; give the sentences that belong to these links"
            )
        yield where, numbers[number], link, is_sure


def _by_line(numbers: list[int], count: int) -> dict[int, int]:
    """Number -> index of the pair. Some sets keep the numbers of a larger set, others skip numbers: if there are as many
    numbers as pairs, they are the pairs in order; otherwise they are line numbers, from 0 if there is a pair 0."""
    if len(numbers) == count:
        return {number: place for place, number in enumerate(numbers)}
    first = 0 if 0 in numbers else 1
    return {place + first: place for place in range(count)}


def _checked(link: Link, sides: tuple[list[str], list[str]], base: int, where: str) -> Link:
    """The link counted from 0."""
    for number, words, side in zip(link, sides, ("first", "second"), strict=True):
        if not base <= number < base + len(words):
            raise UserError(
                f"{where}: the link {link[0]}-{link[1]} is outside the {pluralize(len(words), 'word')} of its "
                f"{side} sentence, counted from {base}; correct it, or set gold_base ({1 - base}) or gold_first in "
                "--tasks_file"
            )
    return link[0] - base, link[1] - base


def _plain(word: str) -> str:
    word = unicodedata.normalize("NFC", word.strip()).casefold()
    kept = [place for place, character in enumerate(word) if not unicodedata.category(character).startswith("P")]
    return word[kept[0] : kept[-1] + 1] if kept else word
