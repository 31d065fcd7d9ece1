"""The corpus step: sources of every language, read, cleaned and written as plain files that the later steps read.

Written: text/<language>[.<source>].txt (a paragraph a line, a blank line between documents),
bitext/<pair>.tsv (sentence, tab, translation), decontaminated.jsonl (what contained evaluation text).
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dist_metaxlm.data import quickstart, readers
from dist_metaxlm.data.cleaning import Counts, LineCleaner
from dist_metaxlm.data.decontamination import EvaluationIndex, Hit
from dist_metaxlm.data.readers import PairPlace
from dist_metaxlm.data.readers_evaluation import evaluation_files, evaluation_texts
from dist_metaxlm.data.readers_files import shown
from dist_metaxlm.data.repeats import Draft, Repeats
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.data import BitextSource, DataConfig, MosesPair, ReadingConfig, TextSource

Log = Callable[[str], None]
Files = dict[str, list[Path]]
Named = Mapping[str, Sequence[PairPlace]]
"""Source name -> its files; the source without a name is ""."""

BATCH_CHARACTERS = 1 << 20
"""Documents are compared with the evaluation texts in batches of about this size."""
QUOTED = 200
"""Characters of an evaluation text that decontaminated.jsonl quotes."""


@dataclass(frozen=True)
class Sources:
    """Every file of a recipe, looked up and known to be there."""

    text: Mapping[str, Named]
    bitext: Mapping[str, Named]


def sources(config: DataConfig) -> Sources:
    """The files of a recipe with `corpus: files`.

    Errors: UserError for a pattern that names no file, an empty file, an unknown format, a name that cannot name files.
    """
    if not config.text:
        raise UserError("data.text names no language; give it files such as data.text: {en: [english.txt]}, "
                        "or set data.corpus: quickstart")
    for language in {*config.text, *(code for pair in config.bitext for code in pair.split("-"))}:
        _check_name(language, "language code", "'en' or 'zh_Hant'")
    evaluation_files(config.cleaning.decontaminate)
    found: dict[str, dict[str, dict[str, Sequence[PairPlace]]]] = {"text": {}, "bitext": {}}
    declared: dict[str, Mapping[str, Mapping[str, TextSource | BitextSource]]] = {
        "text": config.text, "bitext": config.bitext}
    for what, languages in declared.items():
        for language, named in sorted(languages.items()):
            if not named:
                raise UserError(f"data.{what}.{language} names no source; give it files, or remove it")
            for name, source in named.items():
                if name:
                    _check_name(name, "source", "'wiki'")
                where = f"data.{what}.{language}.{name}".rstrip(".")
                files = _places(source.files, where, what)
                found[what].setdefault(language, {})[name] = files
    return Sources(found["text"], found["bitext"])


def _check_name(name: str, what: str, example: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UserError(f"{what} {name!r} in data.text or data.bitext names files; use letters, digits and _ such as "
                        f"{example}")


def _places(entries: Sequence[str | MosesPair], where: str, what: str) -> list[PairPlace]:
    found: list[PairPlace] = []
    for entry in entries:
        if isinstance(entry, MosesPair):
            left, right = (readers.expand([side], where) for side in entry.moses)
            if len(left) != len(right):
                raise UserError(f"{where}: moses {entry.moses[0]!r} names {len(left)} files and {entry.moses[1]!r} "
                                f"{len(right)}; give as many files on both sides")
            found += zip(left, right, strict=True)
        else:
            places = readers.expand([entry], where)
            readers.check_formats(places, what, where)
            found += places
    return list(dict.fromkeys(found))


def files(folder: Path) -> tuple[Files, Files]:
    """The corpus files of a prepared or quickstart folder: text by language, bitext by pair, both sorted."""
    found: tuple[Files, Files] = {}, {}
    for into, pattern in zip(found, ("text/*.txt", "bitext/*.tsv"), strict=True):
        for path in sorted(folder.glob(pattern)):
            into.setdefault(path.name.split(".")[0], []).append(path)
    return found


def make(folder: Path, config: DataConfig, log: Log) -> dict[str, Any]:
    """Write the corpus into `folder`; returns what went in and what every step dropped, for the manifest.

    Errors: UserError for damaged text, and for a language of which nothing is left.
    """
    scratch = folder / ".scratch"
    origin: dict[str, Any] = {}
    if config.corpus == "quickstart":
        origin = quickstart.collect(scratch / "quickstart", log)
        found = _named(scratch / "quickstart")
    else:
        found = sources(config)
    with (folder / "decontaminated.jsonl").open("w", encoding="utf-8") as listed:
        maker = _Maker(folder, config, _index(config, log), listed)
        about = {what: {name: maker.make(shape, name, named, log) for name, named in group.items()}
                 for what, shape, group in (("text", TEXT, found.text), ("bitext", BITEXT, found.bitext))}
    if not config.cleaning.decontaminate:
        (folder / "decontaminated.jsonl").unlink()
    shutil.rmtree(scratch)
    return {**origin, **about, "cleaning": config.cleaning.model_dump(mode="json"), "decontaminated": maker.by_file()}


def _named(folder: Path) -> Sources:
    """The files of the quickstart as sources, so that each keeps its name."""
    text, bitext = ({language: {".".join(path.name.split(".")[1:-1]): [path] for path in paths}
                     for language, paths in group.items()} for group in files(folder))
    return Sources(text, bitext)


def _index(config: DataConfig, log: Log) -> EvaluationIndex | None:
    if not config.cleaning.decontaminate:
        return None
    index = EvaluationIndex()
    for file, text in evaluation_texts(config.cleaning.decontaminate, config.reading.max_line_characters):
        index.add(file, text)
    index.freeze()
    log(f"{len(index)} evaluation texts to keep out of the corpus")
    return index


@dataclass(frozen=True)
class Shape:
    """What differs between text and bitext: a translation pair is a document of two lines that stay or go together."""

    folder: str
    unit: str
    suffix: str
    whole: bool
    read: Callable[[PairPlace, ReadingConfig, str], Iterator[Sequence[str]]]


def _read_text(place: PairPlace, reading: ReadingConfig, name: str) -> Iterator[Sequence[str]]:
    assert not isinstance(place, tuple)
    return readers.documents([place], reading)


def _read_bitext(place: PairPlace, reading: ReadingConfig, name: str) -> Iterator[Sequence[str]]:
    return readers.pairs([place], reading, name.split("-"))


TEXT = Shape("text", "documents", ".txt", False, _read_text)
BITEXT = Shape("bitext", "pairs", ".tsv", True, _read_bitext)


class _Maker:
    """Cleans languages one after the other."""

    def __init__(self, folder: Path, config: DataConfig, index: EvaluationIndex | None, listed: IO[str]) -> None:
        self._folder, self._config, self._index, self._listed = folder, config, index, listed
        self._cleaner = LineCleaner(config.cleaning)
        self._hits: Counter[tuple[str, str]] = Counter()
        for shape in (TEXT, BITEXT):
            (folder / shape.folder).mkdir()

    def by_file(self) -> dict[str, dict[str, int]]:
        """Evaluation file -> language or pair -> documents dropped because of it."""
        found: dict[str, dict[str, int]] = {}
        for (file, name), number in sorted(self._hits.items()):
            found.setdefault(file, {})[name] = number
        return found

    def make(self, shape: Shape, name: str, named: Mapping[str, Sequence[PairPlace]], log: Log) -> dict[str, Any]:
        """Write the files of one language or pair; returns their part of the manifest."""
        scratch = self._folder / ".scratch" / name
        repeats = Repeats(scratch, self._config.cleaning, shape.whole)
        counts = {source: Counts() for source in named}
        drafts = {source: Draft(scratch / f"{source}.draft", shape.whole) for source in named}
        for source, places in named.items():
            with drafts[source].writing() as write:
                for place in places:
                    for lines in self._cleaned(shape, name, place, counts[source]):
                        repeats.add(lines)
                        write(lines)
        repeats.find(drafts.values())
        stems: dict[str, list[str]] = {}
        for source in named:
            # Sources of translations become one file: only text is mixed by source.
            stems.setdefault(f"{name}.{source}" if source and not shape.whole else name, []).append(source)
        for stem, members in stems.items():
            with Draft(self._folder / shape.folder / f"{stem}{shape.suffix}", shape.whole).writing() as write:
                for source in members:
                    for lines in repeats.kept(drafts[source], counts[source]):
                        counts[source].keep(lines)
                        write(lines)
        shutil.rmtree(scratch)
        total = sum(counts.values(), Counts())
        log(f"{name}: {total.documents} of {total.read_documents} {shape.unit} kept, {total.bytes / 1e6:.1f} MB")
        if not total.documents:
            raise UserError(f"data.{shape.folder}.{name}: cleaning left none of {total.read_documents} {shape.unit} "
                            f"({dict(total.dropped_documents)} dropped); loosen data.cleaning, or remove the files")
        return {**total.as_json(shape.unit), "sources": {
            source: {**counts[source].as_json(shape.unit), "files": [_named_files(place) for place in named[source]]}
            for source in named}}

    def _cleaned(self, shape: Shape, name: str, place: PairPlace, counts: Counts) -> Iterator[list[str]]:
        """Documents of one file after the steps that look at one document alone."""
        batch: list[tuple[int, list[str]]] = []
        size = 0
        for number, document in enumerate(shape.read(place, self._config.reading, name), 1):
            counts.read_documents += 1
            counts.read_lines += len(document)
            lines = [kept for line in document if (kept := self._cleaner.clean(line, counts)) is not None]
            if len(lines) < len(document):
                if shape.whole:
                    lines = []
                counts.drop("length", not lines, len(document) - len(lines))
            if lines:
                batch.append((number, lines))
                size += sum(map(len, lines))
            if size >= BATCH_CHARACTERS:
                yield from self._clean_of_evaluation(shape, name, place, batch, counts)
                batch, size = [], 0
        yield from self._clean_of_evaluation(shape, name, place, batch, counts)

    def _clean_of_evaluation(self, shape: Shape, name: str, place: PairPlace, batch: list[tuple[int, list[str]]],
                             counts: Counts) -> Iterator[list[str]]:
        hits = _check(self._index, batch, shape.whole)
        for (number, lines), hit in zip(batch, hits, strict=True):
            if hit is None:
                yield lines
                continue
            counts.drop("decontaminate", 1, len(lines))
            self._hits[hit.file, name] += 1
            row = {shape.folder: name, "file": _named_files(place), shape.unit.rstrip("s"): number,
                   "characters": sum(map(len, lines)), "evaluation_file": hit.file, "sentence": hit.sentence[:QUOTED]}
            self._listed.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check(index: EvaluationIndex | None, batch: list[tuple[int, list[str]]], whole: bool) -> Iterable[Hit | None]:
    """The evaluation text that each document of the batch contains; the sides of a pair are looked at one by one."""
    if index is None or not batch:
        return [None] * len(batch)
    if not whole:
        return index.check([lines for _, lines in batch])
    left, right = (index.check([[lines[side]] for _, lines in batch]) for side in range(2))
    return [first or second for first, second in zip(left, right, strict=True)]


def _named_files(place: PairPlace) -> str:
    return " ".join(map(shown, place)) if isinstance(place, tuple) else shown(place)
