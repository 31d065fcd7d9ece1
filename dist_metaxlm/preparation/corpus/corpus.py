"""The corpus step: the sources of every language are read, cleaned and written as plain files for the later steps.

Written: text/<language>[.<source>].txt (a paragraph a line, a blank line between documents),
bitext/<pair>.tsv (sentence, tab, translation), decontaminated.jsonl (documents that contained evaluation text).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.corpus import quickstart
from dist_metaxlm.preparation.corpus.decontamination import EvaluationIndex
from dist_metaxlm.preparation.corpus.language import BITEXT, TEXT, LanguageMaker, Made, Named, Shape, named_files
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.dispatch import PairPlace, Place
from dist_metaxlm.preparation.readers.evaluation import evaluation_files, evaluation_texts
from dist_metaxlm.preparation.readers.files import shown
from dist_metaxlm.preparation.readers.problems import Empty, Problems, WrongRecipe, raise_all
from dist_metaxlm.preparation.workers.processes import WORKERS, available_cores, end_with_parent
from dist_metaxlm.recipe.data import BitextSource, DataConfig, MosesPair, TextSource
from dist_metaxlm.text import pluralize

Log = Callable[[str], None]
Files = dict[str, list[Path]]
Task = tuple[Shape, str, Named, Problems]
"""A language or language pair, with its files, and the problems detected before opening them."""

READ_TO_REFUSE_BYTES = 64 << 20
"""Bytes of a refused corpus that are read to report further problems in it."""
ALONE_BYTES = 64 << 20
"""Less text than this is cleaned by one process unless the user sets --workers: processes take a second to start."""


@dataclass(frozen=True)
class Sources:
    """Every file of a recipe, resolved and checked for existence."""

    text: Mapping[str, Named]
    bitext: Mapping[str, Named]
    problems: Mapping[str, Problems] = field(default_factory=dict)
    """Language or pair -> its files that are skipped without being opened, as `data.reading.on_error` allows."""


def sources(config: DataConfig) -> Sources:
    """The files of a recipe with `corpus: files`.

    Errors: UserError for a name that is invalid in file names and for a file of two languages; one for all patterns that
    match no file and, depending on `data.reading.on_error`, empty files and unknown formats.
    """
    if not config.text:
        raise UserError(
            "data.text names no language; give it files such as data.text: {en: [english.txt]}, "
            "or set data.corpus: quickstart"
        )
    for language in {*config.text, *(code for pair in config.bitext for code in pair.split("-"))}:
        _check_name(language, "language code", "'en' or 'zh_Hant'")
    by_kind: dict[str, dict[str, dict[str, Sequence[PairPlace]]]] = {"text": {}, "bitext": {}}
    declared: dict[str, Mapping[str, Mapping[str, TextSource | BitextSource]]] = {
        "text": config.text,
        "bitext": config.bitext,
    }
    problems: dict[str, Problems] = {}
    refused: list[str] = []
    try:
        evaluation_files(config.cleaning.decontaminate)
    except UserError as error:
        refused.append(str(error))
    for what, languages in declared.items():
        for language, named in sorted(languages.items()):
            if not named:
                raise UserError(f"data.{what}.{language} names no source; give it files, or remove it")
            problems[language] = Problems()
            for name, source in named.items():
                if name:
                    _check_name(name, "source", "'wiki'")
                where = f"data.{what}.{language}.{name}".rstrip(".")
                files = _places(source, where, what, problems[language])
                by_kind[what].setdefault(language, {})[name] = files
                if not files and config.reading.on_error == "skip" and not problems[language].wrong:
                    refused.append(f"{where}: none of its files has text; give it others, or remove it")
    _refuse_shared(by_kind["text"])
    _refuse(config, by_kind, problems, refused)
    return Sources(by_kind["text"], by_kind["bitext"], problems)


def _refuse(
    config: DataConfig, by_kind: Mapping[str, Mapping[str, Named]], problems: Mapping[str, Problems], refused: list[str]
) -> None:
    """Raise one UserError with all problems that the recipe's policy does not allow."""
    if config.reading.on_error == "refuse" and any(problems.values()):
        _read_small(config, by_kind, problems)
    for language, its in problems.items():
        if its.wrong or config.reading.on_error == "refuse":
            refused += its.refused(config.reading, language, 0, 0)
    raise_all(refused)


def _read_small(config: DataConfig, by_kind: Mapping[str, Mapping[str, Named]], problems: Mapping[str, Problems]) -> None:
    """Read the smaller files of a corpus that is refused in any case, to report their problems as well."""
    left = READ_TO_REFUSE_BYTES
    tasks = [
        (shape, name, source, places)
        for shape in (TEXT, BITEXT)
        for name, of in by_kind[shape.folder].items()
        for source, places in of.items()
    ]
    for shape, name, source, places in tasks:
        reading = shape.reading(config, name, source)
        for place in places:
            size = _size(place)
            if size and size <= left:
                left -= size
                for _ in shape.read(place, reading, name, problems[name]):
                    pass


def _refuse_shared(text: Mapping[str, Mapping[str, Sequence[PairPlace]]]) -> None:
    """Raise UserError for a file of two languages, such as from a glob that matches too much: they would be mixed up."""
    owners: dict[PairPlace, str] = {}
    for language, named in text.items():
        for place in (place for places in named.values() for place in places):
            if owners.setdefault(place, language) != language:
                raise UserError(
                    f"{named_files(place)} is in data.text.{owners[place]} and in data.text.{language}; take it "
                    "out of one, or narrow the glob that names it"
                )


def _check_name(name: str, what: str, example: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UserError(
            f"{what} {name!r} in data.text or data.bitext names files; use letters, digits and _ such as {example}"
        )


def _places(source: TextSource | BitextSource, where: str, what: str, problems: Problems) -> list[PairPlace]:
    places: list[PairPlace] = []
    for entry in source.files:
        if isinstance(entry, MosesPair):
            places += _moses_places(entry, where, problems)
            continue
        for place in readers.expand([entry], where, problems):
            try:
                if source.format is None:
                    readers.check_formats([place], what, where)
            except UserError as error:
                problems.file(error)
            else:
                places.append(place)
    return list(dict.fromkeys(places))


def _moses_places(entry: MosesPair, where: str, problems: Problems) -> list[PairPlace]:
    """The pairs of files of two globs. An empty file keeps its position; otherwise all later files would be mismatched."""
    sides: list[list[Place]] = []
    for side in entry.moses:
        its = Problems()
        sides.append(readers.expand([side], where, its, keep_empty=True))
        for sentence in its.quoted:
            problems.file(WrongRecipe(sentence))
    if all(sides) and len(sides[0]) != len(sides[1]):
        problems.file(
            WrongRecipe(
                f"{where}: moses {entry.moses[0]!r} names {pluralize(len(sides[0]), 'file')} and "
                f"{entry.moses[1]!r} {len(sides[1])}; give as many files on both sides"
            )
        )
    pairs: list[PairPlace] = []
    for pair in zip(*sides, strict=False) if len(sides[0]) == len(sides[1]) else ():
        empty = [place for place in pair if isinstance(place, Path) and not place.stat().st_size]
        if empty:
            kind = Empty if len(empty) == 2 else WrongRecipe
            problems.file(kind(f"{where}: {shown(empty[0])} is empty; put text into it or take it out of the recipe"))
        else:
            pairs.append((pair[0], pair[1]))
    return pairs


def files(folder: Path) -> tuple[Files, Files]:
    """The corpus files of a prepared or quickstart folder: text by language, bitext by pair, both sorted."""
    listing: tuple[Files, Files] = {}, {}
    for into, pattern in zip(listing, ("text/*.txt", "bitext/*.tsv"), strict=True):
        for path in sorted(folder.glob(pattern)):
            into.setdefault(path.name.split(".")[0], []).append(path)
    return listing


def make(folder: Path, config: DataConfig, log: Log, workers: int | None = None) -> dict[str, object]:
    """Write the corpus into `folder`; returns counts of the input and of the units dropped by every step, for the manifest.

    `workers`: processes, each for whole languages; the output does not depend on their number.
    Errors: one UserError for all problems that `data.reading.on_error` does not allow, and for languages with no text left.
    """
    scratch = folder / ".scratch"
    origin: dict[str, object] = {}
    if config.corpus == "quickstart":
        origin = quickstart.collect(scratch / "quickstart", log)
        inputs = _named(scratch / "quickstart")
    else:
        inputs = sources(config)
    for place in (scratch, folder / TEXT.folder, folder / BITEXT.folder):
        place.mkdir(exist_ok=True)
    tasks = [
        (shape, name, named, inputs.problems.get(name, Problems()))
        for shape, group in ((TEXT, inputs.text), (BITEXT, inputs.bitext))
        for name, named in group.items()
    ]
    log(
        f"cleaning {pluralize(len(inputs.text), 'language')} and {pluralize(len(inputs.bitext), 'language pair')}, "
        f"{sum(_sizes(tasks)) / 1e6:.1f} MB of files"
    )
    maker = LanguageMaker(folder, config, _index(config, log))
    made: dict[str, Made] = {}
    for result in _all_made(maker, tasks, workers):
        made[result.name] = result
        for line in result.line.split("\n"):
            log(line)
    raise_all([sentence for _, name, *_ in tasks for sentence in made[name].refused])
    if config.cleaning.decontaminate:
        with (folder / "decontaminated.jsonl").open("wb") as listed:
            for _, name, *_ in tasks:
                with maker.listed(name).open("rb") as rows:
                    shutil.copyfileobj(rows, listed)
    shutil.rmtree(scratch)
    about = {shape.folder: {name: made[name].about for of, name, *_ in tasks if of is shape} for shape in (TEXT, BITEXT)}
    return {**origin, **about, "cleaning": config.cleaning.model_dump(mode="json"), "decontaminated": _by_file(made)}


def _by_file(made: Mapping[str, Made]) -> dict[str, dict[str, int]]:
    """Evaluation file -> language or pair -> documents dropped because of it."""
    dropped: dict[str, dict[str, int]] = {}
    for file, name in sorted((file, name) for name, result in made.items() for file in result.hits):
        dropped.setdefault(file, {})[name] = made[name].hits[file]
    return dropped


def _all_made(maker: LanguageMaker, tasks: list[Task], workers: int | None) -> Iterator[Made]:
    """The results of all tasks in order of completion, from this process or `workers` others."""
    sizes = _sizes(tasks)
    workers = min(workers or (available_cores() if sum(sizes) >= ALONE_BYTES else 1), len(tasks))
    if workers == 1:
        yield from (maker.make(*task) for task in tasks)
        return
    with ProcessPoolExecutor(workers, WORKERS, end_with_parent) as pool:
        # largest first, so that none starts last: it may take as long as all the others together
        largest_first = sorted(range(len(tasks)), key=lambda number: -sizes[number])
        try:
            for future in as_completed([pool.submit(maker.make, *tasks[number]) for number in largest_first]):
                yield future.result()
        except BaseException as error:
            maker.stop.touch()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker process was killed, usually for lack of memory; give fewer --workers and run "
                    "metaxlm prepare again"
                ) from None
            raise


def _sizes(tasks: list[Task]) -> list[int]:
    """Bytes of the files of each task."""
    return [sum(_size(place) for places in named.values() for place in places) for _, _, named, _ in tasks]


def _size(place: PairPlace) -> int:
    """Bytes of one or two files; URLs count as 0."""
    if isinstance(place, tuple):
        return sum(map(_size, place))
    return place.stat().st_size if isinstance(place, Path) else 0


def _named(folder: Path) -> Sources:
    """The files of the quickstart as sources, so that each keeps its name."""
    text, bitext = (
        {language: {".".join(path.name.split(".")[1:-1]): [path] for path in paths} for language, paths in group.items()}
        for group in files(folder)
    )
    return Sources(text, bitext)


def _index(config: DataConfig, log: Log) -> EvaluationIndex | None:
    if not config.cleaning.decontaminate:
        return None
    index = EvaluationIndex()
    for file, text in evaluation_texts(config.cleaning.decontaminate, config.reading.max_line_characters):
        index.add(file, text)
    index.freeze()
    log(f"{pluralize(len(index), 'evaluation text')} to keep out of the corpus")
    return index
