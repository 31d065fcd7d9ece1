"""Removal of repeated documents and lines from the drafts of one language: two passes over files, bounded memory.

Order: duplicate documents, near-duplicate documents, then duplicate lines in the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dist_metaxlm.preparation.corpus.cleaning import Counts
from dist_metaxlm.preparation.corpus.deduplication import Dropped, Repeated, find_repeated, text_digest
from dist_metaxlm.preparation.corpus.near_duplicates import NearDuplicateFinder
from dist_metaxlm.recipe.data import CleaningConfig


class Draft:
    """Documents in a file: lines with a blank line after each document, or the two sides of a pair with a tab between."""

    def __init__(self, path: Path, pairs: bool) -> None:
        self.path, self._pairs = path, pairs

    @contextmanager
    def writing(self) -> Iterator[Callable[[Sequence[str]], None]]:
        """A function that appends a document."""
        between, end = ("\t", "\n") if self._pairs else ("\n", "\n\n")
        with self.path.open("w", encoding="utf-8", newline="\n") as file:
            yield lambda lines: (file.write(between.join(lines) + end), None)[1]

    def read(self) -> Iterator[list[str]]:
        """The documents in order."""
        document: list[str] = []
        with self.path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                line = line.removesuffix("\n")
                if self._pairs:
                    yield line.split("\t")
                elif line:
                    document.append(line)
                else:
                    yield document
                    document = []


class Repeats:
    """`add` every document of a language in order, `find` once, then walk the drafts in the same order with `kept`."""

    def __init__(self, scratch: Path, config: CleaningConfig, pairs: bool) -> None:
        """`scratch` is created; its files are temporary. Translations are compared as whole pairs, and only exactly."""
        scratch.mkdir(parents=True)
        self._scratch = scratch
        asked = ["documents"] if pairs and config.deduplicate else config.deduplicate
        self._documents = Repeated(scratch / "documents") if "documents" in asked else None
        self._lines = Repeated(scratch / "lines") if "lines" in asked else None
        near = None if pairs else config.near_duplicates
        self._near = NearDuplicateFinder(scratch / "near", near) if near else None
        self._steps: list[tuple[str, Dropped]] = []
        self._dropped_lines: Dropped | None = None
        self._added = self._next_document = self._next_line = 0

    def add(self, lines: Sequence[str]) -> None:
        """Add a document."""
        if self._documents:
            self._documents.add(text_digest("\n".join(lines)), self._added)
        if self._near:
            self._near.add(lines, self._added)
        self._added += 1

    def find(self, drafts: Iterable[Draft]) -> None:
        """Decide what goes."""
        if self._documents:
            self._steps.append(("duplicate_documents", find_repeated(self._documents, self._scratch / "dropped")))
        if self._near:
            self._steps.append(("near_duplicates", self._near.find()))
        if self._lines:
            line = 0
            for document, lines in enumerate(lines for draft in drafts for lines in draft.read()):
                if self._step(document) is None:
                    for place, text in enumerate(lines, line):
                        self._lines.add(text_digest(text), place)
                line += len(lines)
            self._dropped_lines = find_repeated(self._lines, self._scratch / "dropped_lines")

    def _step(self, document: int) -> str | None:
        return next((step for step, dropped in self._steps if document in dropped), None)

    def kept(self, draft: Draft, counts: Counts) -> Iterator[list[str]]:
        """The kept documents of the next draft, without dropped lines; dropped units are counted."""
        for lines in draft.read():
            step = self._step(self._next_document)
            first = self._next_line
            self._next_document += 1
            self._next_line += len(lines)
            if step is not None:
                counts.drop(step, 1, len(lines))
                continue
            if self._dropped_lines is not None:
                kept = [line for place, line in enumerate(lines, first) if place not in self._dropped_lines]
                if len(kept) < len(lines):
                    counts.drop("duplicate_lines", not kept, len(lines) - len(kept))
                lines = kept
            if lines:
                yield lines
