"""Texts of evaluation files, of any task: every cell, line or string that a model could have been trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.files import Place, decoded, kind, lines, shown, whole
from dist_metaxlm.preparation.readers.paths import expand
from dist_metaxlm.preparation.readers.problems import Problems, raise_all
from dist_metaxlm.preparation.readers.records import json_lines, paragraphs
from dist_metaxlm.preparation.readers.token_lines import token_rows
from dist_metaxlm.recipe.data import EvaluationFiles
from dist_metaxlm.text import pluralize

FIELD = "data.cleaning.decontaminate"
KNOWN = (".txt", ".tsv", ".jsonl", ".json")


def evaluation_texts(entries: Iterable[str | EvaluationFiles], limit: int) -> Iterator[tuple[str, str]]:
    """(file, text) of all evaluation files.

    Errors, after the last file: UserError naming all files without text or with bad text; before the first: as for
    `evaluation_files`.
    """
    problems = []
    for place, column in evaluation_files(entries):
        any_text = False
        try:
            for text in _tokens(place, column, limit) if column else _texts(place, limit):
                any_text = True
                yield shown(place), text
            if not any_text:
                raise UserError(f"{FIELD}: {shown(place)} holds no text; put text into it or take it out of the recipe")
        except UserError as error:
            problems.append(str(error))
    raise_all(problems)


def evaluation_files(entries: Iterable[str | EvaluationFiles]) -> list[tuple[Place, int | None]]:
    """The files of the recipe's entries, each with its token column, if any.

    Errors: UserError naming all patterns without files, empty files and files of unknown format.
    """
    places: list[tuple[Place, int | None]] = []
    problems = Problems()
    for entry in entries:
        if isinstance(entry, EvaluationFiles):
            places += [(place, entry.token_column) for place in expand(entry.files, FIELD, problems)]
            continue
        for place in expand([entry], FIELD, problems):
            if kind(place) not in KNOWN:
                problems.file(
                    UserError(
                        f"{FIELD}: {shown(place)} has no known format in its name; known: {', '.join(KNOWN)}, and "
                        "any file with one token a line as {files: [...], token_column: 1}"
                    )
                )
            places.append((place, None))
    raise_all(problems.quoted)
    return places


def _texts(place: Place, limit: int) -> Iterator[str]:
    suffix = kind(place)
    if suffix == ".json":
        try:
            yield from _strings(json.loads(decoded(whole(place), shown(place))))
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise UserError(
                    f"{shown(place)}, line {error.lineno}, column {error.colno} is not JSON ({error.msg}); correct it"
                ) from None
            suffix = ".jsonl"
        except (ValueError, RecursionError):
            raise UserError(f"{shown(place)} has a number or a nesting that is too large to read; correct it") from None
    if suffix == ".jsonl":
        for _, record in json_lines(place, limit):
            yield from _strings(record)
    elif suffix in (".txt", ".tsv"):
        for _, line in lines(place, limit):
            yield from (cell for cell in line.split("\t") if cell.strip())


def _strings(value: object) -> Iterator[str]:
    """All strings of a JSON value, in order; a stack, because recursion would fail at a depth that json.loads accepts."""
    left: list[object] = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield from paragraphs(value)
        elif isinstance(value, list):
            left += reversed(value)
        elif isinstance(value, dict):
            left += reversed(list(value.values()))


def _tokens(place: Place, column: int, limit: int) -> Iterator[str]:
    sentence: list[str] = []
    for row in token_rows(place, column, limit=limit, strict=False):
        if row is None:
            if sentence:
                yield " ".join(sentence)
            sentence = []
            continue
        where, cells, _ = row
        if len(cells) < column:
            raise UserError(
                f"{where} has {pluralize(len(cells), 'column')} and no column {column}; correct token_column in {FIELD}"
            )
        sentence.append(cells[column - 1])
