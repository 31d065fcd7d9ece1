"""The sources of a language: corpora of the store that share its windows by weight * tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dist_metaxlm.data.tokens.store import CorpusEntry


@dataclass(frozen=True)
class Source:
    """A corpus of the store, such as `en` or `en.books`."""

    corpus: str
    """Name of its files."""
    language: str
    """Its language."""
    weight: Fraction
    """Factor of its tokens in its share of the language's windows."""

    @property
    def title(self) -> str:
        """Its name in messages."""
        known = self.corpus == self.language
        return f"language {self.language}" if known else f"source {self.corpus} of language {self.language}"


def text_sources(entries: Mapping[str, CorpusEntry]) -> dict[str, list[Source]]:
    """Language -> its sources, both in alphabetical order, from the manifest's text entries.

    An entry without "language" is a separate language; an entry without "weight" has weight 1.
    """
    sources: dict[str, list[Source]] = {}
    for corpus in sorted(entries):
        language = entries[corpus].get("language", corpus)
        weight = Fraction(str(entries[corpus].get("weight", 1)))
        sources.setdefault(language, []).append(Source(corpus, language, weight))
    return dict(sorted(sources.items()))


def part_weights(sources: list[Source], tokens: list[int]) -> list[int]:
    """Integers in the ratio weight * tokens."""
    whole = lcm(*(source.weight.denominator for source in sources))
    return [int(source.weight * whole) * count for source, count in zip(sources, tokens, strict=True)]
