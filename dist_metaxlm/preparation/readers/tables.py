"""Further formats with fields: CSV with a header, JSON arrays, Arrow streams, WebDataset archives; read in bounded memory.

Sources of the formats: RFC 4180 (CSV), RFC 8259 (JSON), https://arrow.apache.org/docs/format/Columnar.html (`.arrow` files
of Hugging Face datasets are streams), https://github.com/webdataset/webdataset (files of a sample share a name in a tar).
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import tarfile
from collections.abc import Callable, Iterator

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.files import Place, decoded, lines, opened, shown, too_long
from dist_metaxlm.preparation.readers.problems import REFUSE, Report

Record = tuple[str, dict[str, object]]
"""(place in the file, field -> value)."""
_CHUNK = 1 << 16
_SPACE = " \t\r\n"
_SEPARATOR = re.compile('"?sep=(.)"?')
"""A line with which Excel names the separator, before the header."""
_QUOTED = re.compile('"[^"]*"')


def csv_rows(place: Place, limit: int, report: Report = REFUSE) -> Iterator[Record]:
    """Rows of a CSV file by the names in its first line, where the separator is the most frequent of comma, semicolon, tab.

    Errors, to `report`: UserError naming file and line if a row has another number of cells than the header; the rest of the
    file after a quote that does not end.
    """
    csv.field_size_limit(limit)
    numbered = lines(place, limit, report)
    first = next(((number, line) for number, line in numbered if line.strip()), None)
    if first is None:
        return
    named = _SEPARATOR.fullmatch(first[1].strip())
    if named and (first := next(numbered, None)) is None:
        return
    separator = named[1] if named else max(",;\t", key=_QUOTED.sub("", first[1]).count)

    def text() -> Iterator[str]:
        yield first[1] + "\n"
        for _, line in numbered:
            yield line + "\n"

    rows, before = csv.reader(text(), delimiter=separator, strict=True), first[0] - 1
    try:
        names = next(rows)
        for cells in rows:
            where = f"{shown(place)}, line {before + rows.line_num}"
            if len(cells) == len(names):
                yield where, dict(zip(names, cells, strict=True))
            elif any(cell.strip() for cell in cells):
                report.record(
                    UserError(
                        f"{where} has {len(cells)} cells and the header {len(names)}; correct the row, or quote cells that "
                        f"contain {separator!r}"
                    )
                )
    except csv.Error as error:
        where = f"{shown(place)}, line {before + rows.line_num}"
        if "new-line" in str(error):
            raise UserError(
                f"{where} has a carriage return outside quotes; let lines end with line feeds, for instance with "
                "tr '\\r' '\\n'"
            ) from None
        raise UserError(
            f"{where} is not CSV ({error}); correct the quotes, or raise data.reading.max_line_characters for long cells"
        ) from None


def is_json_array(place: Place) -> bool:
    """Whether the first character of a file that is not white space is `[`."""
    with opened(place) as file:
        while chunk := file.read(_CHUNK):
            if start := chunk.removeprefix(codecs.BOM_UTF8).lstrip():
                return start.startswith(b"[")
    return False


def json_array(place: Place, limit: int, report: Report = REFUSE) -> Iterator[Record]:
    """Objects of a file with one JSON array. Memory: one object, of at most 4 * `limit` characters.

    Errors: UserError naming the number of the element, from 1, that is damaged or too long; to `report` if it is no object.
    """
    decoder, number = json.JSONDecoder(), 0
    with opened(place) as file:
        reader = codecs.getreader("utf-8-sig")(file)
        buffer, ended = _more(reader, place, "")
        buffer = buffer.lstrip(_SPACE).removeprefix("[")
        while True:
            buffer = buffer.lstrip(_SPACE)
            where = f"{shown(place)}, element {number + 1}"
            if buffer.startswith("]"):
                _check_end(reader, place, buffer[1:])
                return
            if number and buffer and not buffer.startswith(","):
                raise UserError(f"{where} does not begin after a comma; correct the file")
            if len(buffer) < 2 and not ended:  # the comma alone
                buffer, ended = _more(reader, place, buffer)
                continue
            try:
                start = len(buffer) - len(buffer.removeprefix("," if number else "").lstrip(_SPACE))
                value, end = decoder.raw_decode(buffer, start)
                complete = end < len(buffer) or ended
            except ValueError as error:
                complete, reason = False, str(error)
                if ended:
                    raise UserError(f"{where} is not JSON ({reason}); correct it or leave it out") from None
            except RecursionError:
                raise UserError(f"{where} has a nesting that is too deep to read; leave it out") from None
            if not complete:
                if len(buffer) > 4 * limit:
                    raise too_long(place, number + 1, limit, "element")
                buffer, ended = _more(reader, place, buffer)
                continue
            number, buffer = number + 1, buffer[end:]
            if isinstance(value, dict):
                yield where, value
            else:
                report.record(
                    UserError(f"{where} is not a JSON object with fields but {type(value).__name__}; leave it out")
                )


def _check_end(reader: codecs.StreamReader, place: Place, buffer: str) -> None:
    """Raise UserError if anything but white space follows the array, such as a second one."""
    while not buffer.strip(_SPACE):
        buffer, ended = _more(reader, place, "")
        if ended:
            return
    raise UserError(
        f"{shown(place)} goes on after its JSON array ({buffer.strip(_SPACE)[:20]!r}); put every array into a file of its "
        "own, or write one object a line"
    )


def _more(reader: codecs.StreamReader, place: Place, buffer: str) -> tuple[str, bool]:
    """(the buffer with at least twice its characters, whether the file has ended)."""
    try:
        chunk = reader.read(max(_CHUNK, len(buffer)))
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(place)} is not UTF-8 ({error.reason}); convert it, for instance with iconv") from None
    return buffer + chunk, not chunk


def arrow_rows(
    place: Place, choose: Callable[[list[str]], list[str]], limit: int, report: Report = REFUSE
) -> Iterator[Record]:
    """Rows of an Arrow stream, with the columns that `choose` selects. Memory: one record batch.

    Errors: UserError naming a file that is not a complete stream or has text that is not UTF-8; to `report` the row with a
    cell that is too long.
    """
    import pyarrow
    import pyarrow.ipc

    number = 0
    with opened(place) as file:
        try:
            with pyarrow.ipc.open_stream(file) as stream:
                chosen = choose(stream.schema.names)
                for batch in stream:
                    part = batch.select(chosen)
                    part.validate(full=True)  # a damaged offset would be read beyond the end of the buffer
                    for row in part.to_pylist():
                        number += 1
                        if any(isinstance(value, str) and len(value) > limit for value in row.values()):
                            report.record(too_long(place, number, limit, "row"))
                        else:
                            yield f"{shown(place)}, row {number}", row
        except (pyarrow.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split())[:200] or "it asks for more memory than there is"
            raise UserError(
                f"{shown(place)} is not a whole Arrow stream ({reason}); write it again, for instance as parquet"
            ) from None


def tar_samples(place: Place, name: str, limit: int, report: Report = REFUSE) -> Iterator[Record]:
    """Text of a WebDataset archive: every `.txt` file as field `name`, and every `.json` file, which holds an object.

    Errors: UserError for an archive that is not complete; to `report` a member that is too long, not UTF-8 or no object.
    """
    with opened(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for member in archive:
                    if not member.isfile() or not member.name.endswith((".txt", ".json")):
                        continue
                    where = f"{shown(place)}, member {member.name}"
                    try:
                        if member.size > 4 * limit:
                            raise UserError(f"{where} has {member.size} bytes; raise data.reading.max_line_characters")
                        stream = archive.extractfile(member)
                        text = decoded(stream.read() if stream else b"", where)
                        prose = member.name.endswith(".txt")
                        record: dict[str, object] = {name: text} if prose else _member(text, where)
                    except UserError as error:
                        report.record(error)
                    else:
                        yield where, record
        except tarfile.TarError as error:
            raise UserError(f"{shown(place)} is not a whole tar archive ({error}); write or copy it again") from None


def _member(text: str, where: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); correct it or leave it out") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object with fields but {type(value).__name__}; leave it out")
    return value
