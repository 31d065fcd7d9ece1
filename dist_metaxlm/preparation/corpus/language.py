"""One language (or language pair) of the corpus: reads, cleans and writes its sources independently of others."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from dist_metaxlm.preparation.corpus.cleaning import Counts, LineCleaner, is_prose
from dist_metaxlm.preparation.corpus.decontamination import EvaluationIndex, Hit
from dist_metaxlm.preparation.corpus.repeats import Draft, Repeats
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.dispatch import PairPlace
from dist_metaxlm.preparation.readers.files import shown
from dist_metaxlm.preparation.readers.problems import Problems, Report
from dist_metaxlm.recipe.data import DataConfig, ReadingConfig, SourceReading
from dist_metaxlm.text import pluralize

Named = Mapping[str, Sequence[PairPlace]]
"""Source name -> its files; the source without a name is ""."""

BATCH_CHARACTERS = 1 << 20
"""Documents are compared with the evaluation texts in batches of about this size."""
QUOTED = 200
"""Characters of an evaluation text that decontaminated.jsonl quotes."""


@dataclass(frozen=True)
class Shape:
    """Differences between text and bitext: a translation pair is a document of two lines, kept or dropped together."""

    folder: str
    unit: str
    suffix: str
    whole: bool
    read: Callable[[PairPlace, ReadingConfig, str, Report], Iterator[Sequence[str]]]

    def reading(self, config: DataConfig, name: str, source: str) -> SourceReading:
        """Reading settings of the files of a source of a language or pair."""
        sources = config.bitext.get(name, {}) if self.whole else config.text.get(name, {})
        return config.reading.of_source(sources.get(source))


def _read_text(place: PairPlace, reading: ReadingConfig, name: str, report: Report) -> Iterator[Sequence[str]]:
    assert not isinstance(place, tuple)
    return readers.documents([place], reading, report)


def _read_bitext(place: PairPlace, reading: ReadingConfig, name: str, report: Report) -> Iterator[Sequence[str]]:
    return readers.pairs([place], reading, name.split("-"), report)


TEXT = Shape("text", "documents", ".txt", False, _read_text)
BITEXT = Shape("bitext", "pairs", ".tsv", True, _read_bitext)


@dataclass(frozen=True)
class Made:
    """The result for a language or pair."""

    name: str
    about: dict[str, Any]
    """Its manifest entry."""
    hits: Counter[str]
    """Evaluation file -> documents dropped because of it."""
    line: str
    """For the log."""
    refused: Sequence[str] = ()
    """Problems that prevent its corpus; empty if none."""


class LanguageMaker:
    """Cleans one language or pair after the other, in this process or, as a copy, in others; each is independent."""

    def __init__(self, folder: Path, config: DataConfig, index: EvaluationIndex | None) -> None:
        """`folder`: of the corpus, with an existing `.scratch`."""
        self._folder, self._config, self._index = folder, config, index
        self._cleaner = LineCleaner(config.cleaning)
        self._hits: Counter[str] = Counter()
        self._listed: IO[str] | None = None
        self.stop = folder / ".scratch" / "stop"
        """A file whose appearance ends the work soon."""

    def listed(self, name: str) -> Path:
        """File of the documents that contained evaluation text, a line of JSON each."""
        return self._folder / ".scratch" / f"{name}.listed"

    def make(self, shape: Shape, name: str, named: Named, problems: Problems | None = None) -> Made:
        """Write the files of one language or pair; `Made.refused` lists unreadable files and sources without remaining text.

        `problems`: detected before its files were opened.
        """
        scratch = self._folder / ".scratch" / name
        problems = replace(problems, quoted=list(problems.quoted)) if problems else Problems()
        files = sum(map(len, named.values())) + problems.total
        self._hits = Counter()
        repeats = Repeats(scratch, self._config.cleaning, shape.whole)
        counts = {source: Counts() for source in named}
        drafts = {source: Draft(scratch / f"{source}.draft", shape.whole) for source in named}
        records = 0
        with self.listed(name).open("w", encoding="utf-8") as self._listed:
            for source, places in named.items():
                reading = shape.reading(self._config, name, source)
                with drafts[source].writing() as write:
                    for place in places:
                        before = replace(counts[source])
                        for lines in self._cleaned(shape, name, place, reading, counts[source], problems):
                            repeats.add(lines)
                            write(lines)
                        records += _records(place, reading, before, counts[source])
        self._listed = None
        field = f"data.{shape.folder}.{name}"
        refused = problems.refused(self._config.reading, field, files, records + problems.records)
        if not refused:
            repeats.find(drafts.values())
            refused = self._write(shape, name, repeats, counts, drafts)
        shutil.rmtree(scratch)
        return self._made(shape, name, named, counts, problems, refused)

    def _made(
        self, shape: Shape, name: str, named: Named, counts: Mapping[str, Counts], problems: Problems, refused: Sequence[str]
    ) -> Made:
        if refused:
            return Made(name, {}, self._hits, f"{name}: {pluralize(len(refused), 'problem')}", refused)
        total = sum(counts.values(), Counts())
        about = {
            **total.as_json(shape.unit),
            **({"left_out": problems.as_json()} if problems else {}),
            "sources": {
                source: {**counts[source].as_json(shape.unit), "files": [named_files(place) for place in named[source]]}
                for source in named
            },
        }
        line = f"{name}: {total.documents} of {total.read_documents} {shape.unit} kept, {total.bytes / 1e6:.1f} MB"
        return Made(name, about, self._hits, f"{line}\n{problems.line(name)}" if problems else line)

    def _write(
        self, shape: Shape, name: str, repeats: Repeats, counts: Mapping[str, Counts], drafts: Mapping[str, Draft]
    ) -> list[str]:
        """Write the files of the corpus; returns a sentence for each that would be empty."""
        empty = []
        stems: dict[str, list[str]] = {}
        for source in counts:
            # Sources of translations become one file: only text is mixed by source.
            stems.setdefault(f"{name}.{source}" if source and not shape.whole else name, []).append(source)
        for stem, members in stems.items():
            with Draft(self._folder / shape.folder / f"{stem}{shape.suffix}", shape.whole).writing() as write:
                for source in members:
                    for lines in repeats.kept(drafts[source], counts[source]):
                        counts[source].keep(lines)
                        write(lines)
            total = sum((counts[source] for source in members), Counts())
            if not total.documents:  # no later step could read it
                empty.append(
                    f"data.{shape.folder}.{stem}: cleaning left none of {total.read_documents} {shape.unit} "
                    f"({dict(total.dropped_documents)} dropped); loosen data.cleaning, or remove the files"
                )
        return empty

    def _cleaned(
        self, shape: Shape, name: str, place: PairPlace, reading: SourceReading, counts: Counts, report: Report
    ) -> Iterator[list[str]]:
        """Documents of one file after the steps that work on single documents."""
        batch: list[tuple[int, list[str]]] = []
        size, quality = 0, self._config.cleaning.quality
        for number, document in enumerate(shape.read(place, reading, name, report), 1):
            counts.read_documents += 1
            counts.read_lines += len(document)
            lines = [kept for line in document if (kept := self._cleaner.clean(line, counts)) is not None]
            if len(lines) < len(document):
                if shape.whole:
                    lines = []
                counts.drop("length", not lines, len(document) - len(lines))
            if lines and quality and not shape.whole and not is_prose(lines, quality):
                counts.drop("quality", 1, len(lines))
                continue
            if lines:
                batch.append((number, lines))
                size += sum(map(len, lines))
            if size >= BATCH_CHARACTERS:
                yield from self._clean_of_evaluation(shape, name, place, batch, counts)
                batch, size = [], 0
        yield from self._clean_of_evaluation(shape, name, place, batch, counts)

    def _clean_of_evaluation(
        self, shape: Shape, name: str, place: PairPlace, batch: list[tuple[int, list[str]]], counts: Counts
    ) -> Iterator[list[str]]:
        if self.stop.exists():
            raise InterruptedError(f"{self.stop} says that another process has failed")
        hits = _check(self._index, batch, shape.whole)
        for (number, lines), hit in zip(batch, hits, strict=True):
            if hit is None:
                yield lines
                continue
            counts.drop("decontaminate", 1, len(lines))
            self._hits[hit.file] += 1
            row = {
                shape.folder: name,
                "file": named_files(place),
                shape.unit.rstrip("s"): number,
                "characters": sum(map(len, lines)),
                "evaluation_file": hit.file,
                "sentence": hit.sentence[:QUOTED],
            }
            assert self._listed is not None
            self._listed.write(json.dumps(row, ensure_ascii=False) + "\n")


def _records(place: PairPlace, reading: SourceReading, before: Counts, after: Counts) -> int:
    """Records read from a file; in plain text a record is a line."""
    if not isinstance(place, tuple) and readers.form(place, reading) == ".txt":
        return after.read_lines - before.read_lines
    return after.read_documents - before.read_documents


def _check(index: EvaluationIndex | None, batch: list[tuple[int, list[str]]], whole: bool) -> Iterable[Hit | None]:
    """The evaluation text that each document of the batch contains; the sides of a pair are checked separately."""
    if index is None or not batch:
        return [None] * len(batch)
    if not whole:
        return index.check([lines for _, lines in batch])
    left, right = (index.check([[lines[side]] for _, lines in batch]) for side in range(2))
    return [first or second for first, second in zip(left, right, strict=True)]


def named_files(place: PairPlace) -> str:
    """The name of one or two files in manifests and messages."""
    return " ".join(map(shown, place)) if isinstance(place, tuple) else shown(place)
