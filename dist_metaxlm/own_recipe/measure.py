"""Sizes of the user's text: documents, characters, bytes, pairs, and how rich its vocabulary is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dist_metaxlm.preparation.corpus import corpus
from dist_metaxlm.preparation.corpus.heldout import PIVOT, text_key
from dist_metaxlm.preparation.corpus.language import Named
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.dispatch import PairPlace
from dist_metaxlm.recipe.data import BitextSource, DataConfig, SourceReading, TextSource

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes of text a token: 3.96 over the 39 languages of the quickstart with its 16,000 pieces (2.9 Slovenian, 8.1
Tamil); an estimate, until a tokenizer is trained."""
READ_BYTES = 256_000_000
"""Text of a language that is read; files after that many bytes are estimated from their size."""
SAMPLE_CHARACTERS = 8_000_000
"""Characters of a language whose words and characters are counted."""
SIDES = 100_000
"""Distinct English sentences of a pair that are counted; more do not change the choice of the held-out share."""
COVERAGE = 0.9995
"""Share of the characters that get a piece of their own (SentencePiece's default)."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a language's text, or of the translations of a pair."""

    units: int
    """Documents, or pairs."""
    characters: int
    """Characters."""
    bytes: int
    """UTF-8 bytes."""
    whole: bool
    """Whether all of it was read; otherwise the numbers are estimates."""

    @property
    def tokens(self) -> int:
        """Estimated tokens."""
        return int(self.bytes / BYTES_PER_TOKEN)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All sources of a recipe."""

    text: dict[str, Size]
    """By language."""
    bitext: dict[str, Size]
    """By pair."""
    repeated_words: int
    """Distinct words that occur at least twice in the sample."""
    characters: int
    """Distinct characters that cover `COVERAGE` of the sample."""
    english_sources: dict[str, int]
    """Language -> distinct English sentences that are translated into it."""

    @property
    def text_tokens(self) -> int:
        """Estimated tokens of all text."""
        return sum(size.tokens for size in self.text.values())

    @property
    def pair_tokens(self) -> int:
        """Estimated tokens of all translations."""
        return sum(size.tokens for size in self.bitext.values())


def measure(config: DataConfig, log: Callable[[str], None]) -> Measured:
    """Read the sources.

    Errors: UserError for all files that are missing, empty, of an unknown format or damaged.
    """
    sources = corpus.sources(config)
    richness = _Richness()
    text, bitext, english = {}, {}, {}
    for code, named in sources.text.items():
        log(f"reading {code}")
        richness.next_language()
        text[code] = _size(_placed(config, config.text[code], named), (), richness.add)
    for pair, named in sources.bitext.items():
        log(f"reading {pair}")
        languages = pair.split("-")
        sides: set[str] = set()
        add = partial(_add_side, sides, languages.index(PIVOT)) if PIVOT in languages else _ignore
        bitext[pair] = _size(_placed(config, config.bitext[pair], named), languages, add)
        if sides:
            english[next(code for code in languages if code != PIVOT)] = len(sides)
    return Measured(
        text=text,
        bitext=bitext,
        repeated_words=sum(times > 1 for times in richness.words.values()),
        characters=_covering(richness.characters),
        english_sources=english,
    )


class _Richness:
    """Words and characters of the first `SAMPLE_CHARACTERS` of every language."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self._left = 0

    def next_language(self) -> None:
        self._left = SAMPLE_CHARACTERS

    def add(self, unit: Sequence[str]) -> None:
        for line in unit:
            if self._left > 0:
                self._left -= len(line)
                self.words.update(line.split())
                self.characters.update(line)


def _add_side(sides: set[str], position: int, unit: Sequence[str]) -> None:
    if len(sides) < SIDES:
        sides.add(text_key(unit[position]))


def _ignore(unit: Sequence[str]) -> None:
    """Pairs without English are counted only."""


def _placed(
    config: DataConfig, declared: Mapping[str, TextSource | BitextSource], named: Named
) -> Iterator[tuple[SourceReading, PairPlace]]:
    for name, places in named.items():
        reading = config.reading.of_source(declared[name])
        yield from ((reading, place) for place in places)


def _size(
    placed: Iterable[tuple[SourceReading, PairPlace]], languages: Sequence[str], add: Callable[[Sequence[str]], None]
) -> Size:
    """Read places until `READ_BYTES`, and estimate the others from the bytes of their files."""
    units = characters = size = read_bytes = other_bytes = 0
    for reading, place in placed:
        on_disk = sum(part.stat().st_size for part in _paths(place))
        if size >= READ_BYTES:
            other_bytes += on_disk
            continue
        read_bytes += on_disk
        for unit in _units(place, reading, languages):
            units += 1
            characters += sum(map(len, unit))
            size += sum(len(part.encode()) for part in unit)
            add(unit)
    scale = 1 + other_bytes / read_bytes if read_bytes else 1.0
    return Size(units=int(units * scale), characters=int(characters * scale), bytes=int(size * scale), whole=not other_bytes)


def _units(place: PairPlace, reading: SourceReading, languages: Sequence[str]) -> Iterator[Sequence[str]]:
    if languages:
        return iter(readers.pairs([place], reading, languages))
    assert not isinstance(place, tuple)
    return iter(readers.documents([place], reading))


def _paths(place: PairPlace) -> list[Path]:
    """The local files of a place; a URL has none, and is always read."""
    return [part for part in (place if isinstance(place, tuple) else (place,)) if isinstance(part, Path)]


def _covering(characters: Counter[str]) -> int:
    """Number of the most frequent characters that make up `COVERAGE` of the text."""
    wanted, covered = COVERAGE * characters.total(), 0
    for number, (_, times) in enumerate(characters.most_common(), 1):
        covered += times
        if covered >= wanted:
            return number
    return len(characters)
