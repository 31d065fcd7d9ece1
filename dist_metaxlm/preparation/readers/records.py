"""Formats with fields: JSON lines, TSV columns and parquet columns. Each function yields (place in the file, values)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.files import Place, lines, opened, shown, too_long
from dist_metaxlm.preparation.readers.problems import REFUSE, Report
from dist_metaxlm.text import pluralize

_UNFIT = re.compile("[\0\ud800-\udfff]")
_BREAK = re.compile(r"[\r\n]+")
_SPACES = re.compile(r"[ \t\r\n]+")
"""White space around what would end a line or a column; not the no-break and ideographic spaces, which are text."""


def paragraphs(text: str) -> list[str]:
    """The lines of a document given as one value, without blank ones."""
    return [line for part in _BREAK.split(text) if (line := part.strip())]


def one_line(text: str) -> str:
    """A side of a translation pair on one line."""
    return _SPACES.sub(" ", text.strip()) if _BREAK.search(text) or "\t" in text else text.strip()


def json_lines(place: Place, limit: int, report: Report = REFUSE) -> Iterator[tuple[str, dict[str, object]]]:
    """Objects of a file with one JSON object a line; blank lines are skipped.

    Errors, to `report`: UserError naming file, line and column if a line is not a JSON object.
    """
    for number, line in lines(place, limit, report):
        if not line.strip():
            continue
        where = f"{shown(place)}, line {number}"
        try:
            value = _object(line, where)
        except UserError as error:
            report.record(error)
        else:
            yield where, value


def _object(line: str, where: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}, column {error.colno} is not JSON ({error.msg}); correct the line or leave it out"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{where} has a number or a nesting that is too large to read; leave the line out") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{where} is not a JSON object with fields but {type(value).__name__}; correct the line or leave it out"
        )
    return value


def field(record: dict[str, object], name: str, where: str, setting: str) -> str:
    """The text in a field of a record; an empty string if it is null.

    Errors: UserError naming the place, the existing fields and `setting`, the recipe field that selects the field.
    """
    if name not in record:
        fields = ", ".join(map(repr, list(record)[:20])) or "none"
        raise UserError(f"{where} has no field {name!r}; its fields are {fields}: {setting}")
    return checked("" if record[name] is None else record[name], f"{where}, field {name!r}")


def checked(value: object, where: str) -> str:
    """A value that must be text. Errors: UserError if it is not text, or contains NUL or half a surrogate pair."""
    if not isinstance(value, str):
        raise UserError(f"{where} is not text but {type(value).__name__}; name a field that holds text")
    if unfit := _UNFIT.search(value):
        raise UserError(
            f"{where}, character {unfit.start() + 1} is U+{ord(unfit[0]):04X}, which no text has; correct it or leave it out"
        )
    return value


def sides(record: dict[str, object], languages: Sequence[str], where: str) -> tuple[str, str]:
    """Both sides of a translation: fields named by the language codes, or a field `translation` that holds them."""
    inner = record.get("translation")
    fields = inner if isinstance(inner, dict) else record
    advice = "name the fields by the language codes of the pair, alone or inside a field 'translation'"
    left, right = (one_line(field(fields, language, where, advice)) for language in languages)
    return left, right


def columns(
    place: Place, wanted: Sequence[int] | None, setting: str, limit: int, report: Report = REFUSE
) -> Iterator[tuple[str, list[str]]]:
    """Columns (numbers from 1) of the lines of a TSV file that are not blank; exactly two columns if none are named.

    Errors, to `report`: UserError naming file and line if the columns are too few, or not two.
    """
    for number, line in lines(place, limit, report):
        if not line.strip():
            continue
        cells = line.split("\t")
        while wanted is None and len(cells) > 2 and not cells[-1].strip():  # tabs at the end, as spreadsheets write them
            cells.pop()
        where = f"{shown(place)}, line {number}"
        if wanted is None and len(cells) != 2:
            report.record(
                UserError(
                    f"{where} has {pluralize(len(cells), 'tab-separated column')} instead of 2 "
                    f"(sentence, translation); correct the line or leave it out, or name the columns in {setting}"
                )
            )
        elif wanted is not None and len(cells) < max(wanted):
            report.record(
                UserError(
                    f"{where} has {pluralize(len(cells), 'tab-separated column')} and no column {max(wanted)}; correct "
                    f"the line or {setting}"
                )
            )
        else:
            yield where, [cells[index - 1].strip() for index in wanted or (1, 2)]


def parquet(
    place: Place, choose: Callable[[list[str]], list[str]], limit: int, report: Report = REFUSE
) -> Iterator[tuple[str, dict[str, object]]]:
    """Rows of a parquet file, with the columns that `choose` selects from the existing ones. Memory: one page of a column.

    Errors: UserError naming a file that is not a complete parquet file or has text that is not UTF-8; to `report` the row
    with a cell that is too long.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    with opened(place) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            chosen = choose(table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=64, columns=chosen, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    if any(isinstance(value, str) and len(value) > limit for value in row.values()):
                        report.record(too_long(place, number, limit, "row"))
                        continue
                    yield f"{shown(place)}, row {number}", row
        except (pyarrow.ArrowException, MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split())[:200] or "it asks for more memory than there is"
            raise UserError(f"{shown(place)} is not a whole parquet file ({reason}); write or copy it again") from None
        except UnicodeDecodeError:
            raise UserError(
                f"{shown(place)}, after row {number}: text that is not UTF-8; write the column as UTF-8"
            ) from None
