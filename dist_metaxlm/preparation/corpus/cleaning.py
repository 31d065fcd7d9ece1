"""Cleaning of one line, and counts of the changed and dropped units of every step.

The steps, in the order of the recipe's `data.cleaning`: unicode, control characters, length, quality, decontamination,
de-duplication, near-duplicates. The first four work on single lines and documents and are in this module.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, fields

from dist_metaxlm.recipe.data import CleaningConfig, QualityFilter

# Zero-width joiner and non-joiner, zero-width space and the two direction marks stay: scripts need them.
_REMOVED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]+"
)
_SPACES = re.compile("[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")


class LineCleaner:
    """The steps that work on single lines."""

    def __init__(self, config: CleaningConfig) -> None:
        self.form = config.unicode
        self.control_characters = config.control_characters
        self.shortest, self.longest = config.min_characters, config.max_characters

    def clean(self, line: str, counts: Counts) -> str | None:
        """The line after normalisation, without white space at its ends; None if its length is out of bounds."""
        if self.form != "none" and not unicodedata.is_normalized(self.form, line):
            line = unicodedata.normalize(self.form, line)
            counts.changed["unicode"] += 1
        # `isprintable` is false for every character that is removed or replaced here, and far faster than a search.
        if self.control_characters and not line.isprintable():
            cleaned = _REMOVED.sub("", _SPACES.sub(" ", line))
            if cleaned != line:
                counts.changed["control_characters"] += 1
                line = cleaned
        line = line.strip()
        if len(line) < self.shortest or (self.longest is not None and len(line) > self.longest):
            return None
        return line


def is_prose(lines: list[str], bounds: QualityFilter) -> bool:
    """Whether a document passes the quality filter."""
    if 1 - len({*lines}) / len(lines) > bounds.max_repeated_lines:
        return False
    characters = [character for line in lines for character in line if not character.isspace()]
    least = bounds.min_letters * len(characters)
    letters = sum(map(str.isalpha, characters))
    # Vowel signs of many scripts are marks; to look them up costs more, so only if letters alone are too few.
    return letters >= least or letters + sum(unicodedata.category(c)[0] == "M" for c in characters) >= least


@dataclass
class Counts:
    """Input and output counts of the cleaning of one language or language pair."""

    read_documents: int = 0
    read_lines: int = 0
    documents: int = 0
    lines: int = 0
    bytes: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    """Step -> lines that it changed."""
    dropped_documents: Counter[str] = field(default_factory=Counter)
    """Step -> documents (or pairs) that it dropped, including those whose last line it dropped."""
    dropped_lines: Counter[str] = field(default_factory=Counter)
    """Step -> lines that it dropped, those of dropped documents included."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def drop(self, step: str, documents: int, lines: int) -> None:
        """Count units that a step dropped."""
        self.dropped_documents[step] += documents
        self.dropped_lines[step] += lines

    def keep(self, lines: list[str]) -> None:
        """Count a kept document."""
        self.documents += 1
        self.lines += len(lines)
        self.bytes += sum(len(line.encode()) + 1 for line in lines)

    def as_json(self, unit: str) -> dict[str, object]:
        """For the manifest; `unit` is "documents" or "pairs" (which have no lines to count)."""

        def both(documents: int, lines: int) -> dict[str, int]:
            return {unit: documents, "lines": lines} if unit == "documents" else {unit: documents}

        steps = sorted(name for name, number in (self.dropped_documents + self.dropped_lines).items() if number)
        return {
            "read": both(self.read_documents, self.read_lines),
            "kept": {**both(self.documents, self.lines), "bytes": self.bytes},
            "changed_lines": dict(sorted(self.changed.items())),
            "dropped": {step: both(self.dropped_documents[step], self.dropped_lines[step]) for step in steps},
        }
