"""Readers of the user's text: documents and translation pairs from files of many formats, given by the file names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers import catalogues
from dist_metaxlm.preparation.readers.files import PACKED, UNBOUNDED, Place, kind, lines, lines_or_none, shown, whole
from dist_metaxlm.preparation.readers.paths import expand
from dist_metaxlm.preparation.readers.problems import REFUSE, Empty, Report, WrongRecipe
from dist_metaxlm.preparation.readers.records import (
    checked,
    columns,
    field,
    json_lines,
    one_line,
    paragraphs,
    parquet,
    sides,
)
from dist_metaxlm.preparation.readers.tables import arrow_rows, csv_rows, is_json_array, json_array, tar_samples
from dist_metaxlm.preparation.readers.tmx import tmx_pairs
from dist_metaxlm.recipe.data import ReadingConfig, SourceReading

__all__ = ["PairPlace", "Place", "check_formats", "documents", "expand", "lines", "pairs"]

PairPlace = Place | tuple[Place, Place]
"""One file with both sides, or two Moses files."""

_ADVICE = "name the right one in data.reading.text_field, or in the source's text_field"
DOCUMENT_BYTES = 1_000_000
"""A document is cut at the next paragraph after this many bytes, so a file without blank lines fits in memory."""
LIKELY_DOCUMENTS = 100
"""Lines of a `.txt` file without a blank one from which a warning asks whether each is a document."""
logger = logging.getLogger(__name__)
PREPARED = ReadingConfig.model_construct(max_line_characters=UNBOUNDED)
"""For prepared corpus files: their lines have passed the recipe's limit."""


def documents(files: Iterable[Place], reading: ReadingConfig = PREPARED, report: Report = REFUSE) -> Iterator[list[str]]:
    """Documents, each a list of paragraphs (lines without white space at their ends).

    `.txt`: a paragraph a line, a blank line or the end of a file ends a document (or with `txt_lines: documents` a line is
    one); `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.tar`: a document a record; `.po`, `.mo`: translations,
    in runs. Errors, to `report`: UserError naming file and place if the text is damaged, too long, not UTF-8 or not in the
    recipe's field, or a file without any text.
    """
    for place in files:
        any_text, before = False, report.records
        try:
            for document in _DOCUMENTS[form(place, reading)](place, reading, report):
                if document:
                    any_text = True
                    yield document
            if not any_text and report.records == before:
                raise Empty(f"{shown(place)} holds no text, only blank lines; put text into it or take it out of the recipe")
        except UserError as error:
            report.file(error)


def pairs(
    files: Iterable[PairPlace], reading: ReadingConfig = PREPARED, languages: Sequence[str] = (), report: Report = REFUSE
) -> Iterator[tuple[str, str]]:
    """Translation pairs (sentence, translation) without white space at their ends; a side may be empty.

    `.tsv`, `.jsonl`, `.json`, `.parquet`, `.tmx` and two Moses files: as in docs/data.md; `.po`, `.mo`: the source string
    is the first side. `languages`: codes of the two sides. Errors: as `documents`.
    """
    for place in files:
        any_text, before = False, report.records
        try:
            for pair in _pairs_of(place, reading, languages, report):
                any_text = True
                yield pair
            if not any_text and report.records == before:
                name = " and ".join(map(shown, place)) if isinstance(place, tuple) else shown(place)
                raise Empty(
                    f"{name} holds no pairs{_languages_hint(place, reading, languages)}; put pairs into it or take it out "
                    "of the recipe"
                )
        except UserError as error:
            report.file(error)


def _pairs_of(
    place: PairPlace, reading: ReadingConfig, languages: Sequence[str], report: Report
) -> Iterator[tuple[str, str]]:
    if isinstance(place, tuple):
        return _moses(*place, reading, report)
    return _PAIRS[form(place, reading)](place, reading, languages, report)


def form(place: Place, reading: ReadingConfig) -> str:
    """Format of a file as a suffix: from the recipe's source entry, else from its name."""
    said = reading.format if isinstance(reading, SourceReading) else None
    return f".{said}" if said else kind(place)


def _languages_hint(place: PairPlace, reading: ReadingConfig, languages: Sequence[str]) -> str:
    if not isinstance(place, tuple) and form(place, reading) == ".tmx":
        return f" of {' and '.join(languages)}"
    return ", only blank lines"


def check_formats(files: Iterable[Place], what: str, where: str) -> None:
    """Raise UserError naming the first file whose format is unknown; `what` is "text" or "bitext"."""
    known = _DOCUMENTS if what == "text" else _PAIRS
    for place in files:
        if kind(place) not in known:
            also = " and {moses: [a.en, a.fr]}" if what == "bitext" else ""
            raise UserError(
                f"{where}: {shown(place)} has no known format in its name; {what} is read from "
                f"{', '.join(known)}, each also with {', '.join(PACKED)}{also}: set the source's format, or "
                "rename or convert the file"
            )


def _plain(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    document: list[str] = []
    size, count, blank, whole_lines = 0, 0, False, reading.txt_lines == "documents"
    for number, line in lines(place, reading.max_line_characters, report):
        text, count = line.strip(), number
        if whole_lines:
            yield [text] if text else []
            continue
        blank = blank or not text
        if document and (not text or size >= DOCUMENT_BYTES):
            yield document
            document, size = [], 0
        if text:
            document.append(text)
            size += len(line)
    yield document
    if count >= LIKELY_DOCUMENTS and not (blank or whole_lines) and reading is not PREPARED:
        logger.warning(
            f"{shown(place)} has {count:,} lines and no blank line, so it is read as one document (cut after "
            f"{DOCUMENT_BYTES:,} bytes); if every line is a document, set data.reading.txt_lines=documents, or the source's "
            "txt_lines"
        )


def _json_documents(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    return _field_documents(_json_records(place, reading, report), reading, report)


def _json_records(place: Place, reading: ReadingConfig, report: Report) -> Iterator[tuple[str, dict[str, object]]]:
    array = form(place, reading) == ".json" and is_json_array(place)
    return (json_array if array else json_lines)(place, reading.max_line_characters, report)


def _field_documents(
    records: Iterable[tuple[str, dict[str, object]]], reading: ReadingConfig, report: Report
) -> Iterator[list[str]]:
    for where, record in records:
        try:
            document = paragraphs(field(record, reading.text_field, where, _ADVICE))
        except UserError as error:
            report.record(error)
        else:
            yield document


def _csv_documents(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    return _field_documents(csv_rows(place, reading.max_line_characters, report), reading, report)


def _tar_documents(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    rows = tar_samples(place, reading.text_field, reading.max_line_characters, report)
    return _field_documents(rows, reading, report)


def _arrow_documents(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    choose = partial(_text_column, place, reading)
    return _field_documents(arrow_rows(place, choose, reading.max_line_characters, report), reading, report)


def _text_column(place: Place, reading: ReadingConfig, names: list[str]) -> list[str]:
    field(dict.fromkeys(names), reading.text_field, f"{shown(place)}, header", _ADVICE)
    return [reading.text_field]


def _column_documents(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    limit = reading.max_line_characters
    for _, (text,) in columns(place, (reading.text_column,), "data.reading.text_column", limit, report):
        yield paragraphs(text)


def _parquet_documents(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    choose = partial(_text_column, place, reading)
    return _field_documents(parquet(place, choose, reading.max_line_characters, report), reading, report)


def _catalogue(place: Place, reading: ReadingConfig, report: Report) -> Iterator[tuple[str, str]]:
    """Clean (source, translation) strings of a gettext catalogue, by the rules of the quickstart corpus."""
    content = whole(place)
    read = catalogues.read_mo if form(place, reading) == ".mo" else catalogues.read_po
    try:
        strings = list(read(content))
    except ValueError as error:
        raise UserError(f"{shown(place)} is not a gettext catalogue ({error}); check it with msgfmt --check") from None
    for number, (source, translation) in enumerate(strings, 1):
        source, translation = catalogues.clean(source), catalogues.clean(translation)
        if catalogues.usable(source, translation):
            where = f"{shown(place)}, message {number}"
            try:
                pair = checked(source, where), checked(translation, where)
            except UserError as error:
                report.record(error)
            else:
                yield pair


def _catalogue_documents(place: Place, reading: ReadingConfig, report: Report) -> Iterator[list[str]]:
    yield from catalogues.runs(translation for _, translation in _catalogue(place, reading, report))


def _column_pairs(
    place: Place, reading: ReadingConfig, languages: Sequence[str], report: Report
) -> Iterator[tuple[str, str]]:
    limit = reading.max_line_characters
    for _, (left, right) in columns(place, reading.pair_columns, "data.reading.pair_columns", limit, report):
        yield left, right


def _json_pairs(place: Place, reading: ReadingConfig, languages: Sequence[str], report: Report) -> Iterator[tuple[str, str]]:
    return _sides_of(_json_records(place, reading, report), languages, report)


def _csv_pairs(place: Place, reading: ReadingConfig, languages: Sequence[str], report: Report) -> Iterator[tuple[str, str]]:
    return _sides_of(csv_rows(place, reading.max_line_characters, report), languages, report)


def _parquet_pairs(
    place: Place, reading: ReadingConfig, languages: Sequence[str], report: Report
) -> Iterator[tuple[str, str]]:
    choose = partial(_pair_columns, place, languages)
    return _sides_of(parquet(place, choose, reading.max_line_characters, report), languages, report)


def _arrow_pairs(
    place: Place, reading: ReadingConfig, languages: Sequence[str], report: Report
) -> Iterator[tuple[str, str]]:
    choose = partial(_pair_columns, place, languages)
    return _sides_of(arrow_rows(place, choose, reading.max_line_characters, report), languages, report)


def _pair_columns(place: Place, languages: Sequence[str], names: list[str]) -> list[str]:
    if "translation" in names:
        return ["translation"]
    sides(dict.fromkeys(names), languages, f"{shown(place)}, header")
    return list(languages)


def _sides_of(
    records: Iterable[tuple[str, dict[str, object]]], languages: Sequence[str], report: Report
) -> Iterator[tuple[str, str]]:
    for where, record in records:
        try:
            pair = sides(record, languages, where)
        except UserError as error:
            report.record(error)
        else:
            yield pair


def _tmx_pairs(place: Place, reading: ReadingConfig, languages: Sequence[str], report: Report) -> Iterator[tuple[str, str]]:
    return tmx_pairs(place, languages, reading.max_line_characters, report)


def _catalogue_pairs(
    place: Place, reading: ReadingConfig, languages: Sequence[str], report: Report
) -> Iterator[tuple[str, str]]:
    return _catalogue(place, reading, report)


def _moses(first: Place, second: Place, reading: ReadingConfig, report: Report) -> Iterator[tuple[str, str]]:
    both = (lines_or_none(place, reading.max_line_characters, report) for place in (first, second))
    for left, right in zip_longest(*both):
        if left is None or right is None:
            short, long, number = (first, second, right[0]) if left is None else (second, first, left[0])
            raise WrongRecipe(
                f"{shown(short)} ends after line {number - 1} and {shown(long)} continues; give two files such "
                "that line n of one translates line n of the other"
            )
        if left[1] is not None and right[1] is not None and (left[1].strip() or right[1].strip()):
            yield one_line(left[1]), one_line(right[1])


_DOCUMENTS: dict[str, Callable[[Place, ReadingConfig, Report], Iterator[list[str]]]] = {
    ".txt": _plain,
    ".jsonl": _json_documents,
    ".json": _json_documents,
    ".csv": _csv_documents,
    ".tsv": _column_documents,
    ".parquet": _parquet_documents,
    ".arrow": _arrow_documents,
    ".tar": _tar_documents,
    ".po": _catalogue_documents,
    ".mo": _catalogue_documents,
}
_PAIRS: dict[str, Callable[[Place, ReadingConfig, Sequence[str], Report], Iterator[tuple[str, str]]]] = {
    ".tsv": _column_pairs,
    ".csv": _csv_pairs,
    ".jsonl": _json_pairs,
    ".json": _json_pairs,
    ".parquet": _parquet_pairs,
    ".arrow": _arrow_pairs,
    ".tmx": _tmx_pairs,
    ".po": _catalogue_pairs,
    ".mo": _catalogue_pairs,
}
TEXT_FORMATS, PAIR_FORMATS = tuple(_DOCUMENTS), tuple(_PAIRS)
"""Suffixes of the formats of text and of translations."""
