"""Files with one token a line and a blank line between sentences: CoNLL's formats, MasakhaNER's, XTREME's TSV.

The first line with a token determines the layout of a file, and every other line must have the same layout. If each line
begins with the token's number (CoNLL-U and its variants), a line that begins with `#` is a comment. In other files `#`
begins tokens such as `#Harbour`, and comments exist only if the caller names their prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.files import UNBOUNDED, Place, lines, shown
from dist_metaxlm.text import pluralize

CONLLU = 10
"""Columns of CoNLL-U."""
_NUMBER = re.compile(r"\d+([-.]\d+)?")
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class Layout:
    """The layout of the lines of a file."""

    tabs: bool
    """Whether tabs separate the columns; else runs of spaces (and tabs)."""
    width: int
    """Number of columns."""
    numbered: bool
    """Whether the first column is the token's number."""
    token: int
    """Column of the token, from 1."""

    def cells(self, line: str) -> list[str]:
        """Columns of a line; not split at white space that occurs in tokens, such as the no-break space in 10 000."""
        if not self.tabs:
            return [cell for cell in re.split("[ \t]+", line) if cell]
        cells = line.split("\t")
        while len(cells) > self.width and not cells[-1].strip():
            cells.pop()
        return cells


def token_rows(
    place: Place, token_column: int | None = None, comments: str = "", limit: int = UNBOUNDED, strict: bool = True
) -> Iterator[tuple[str, list[str], Layout] | None]:
    """(place in the file, columns, layout) of every token, None at the end of every sentence.

    Comments, -DOCSTART- lines and, in numbered files, ranges such as 3-4 and empty nodes such as 5.1 are skipped.

    Args:
        place: the file.
        token_column: column of the token, from 1; None: the second of numbered files, else the first.
        comments: prefix of comments in files without numbers; empty: no comments.
        limit: longest line in characters.
        strict: whether a line with a different number of columns is an error.

    Errors: UserError naming the line whose layout differs from the first one.
    """
    layout: Layout | None = None
    waiting: list[tuple[int, str]] = []
    """Lines that may be comments or tokens, until the first other line decides."""
    for number, line in lines(place, limit):
        if layout is None:
            waiting.append((number, line))
            if not line.strip() or line.startswith((_DOCUMENT, "#")) or (comments and line.startswith(comments)):
                continue
            layout = _layout(line, token_column)
            for row in waiting:
                yield from _row(place, *row, layout, comments, strict)
        else:
            yield from _row(place, number, line, layout, comments, strict)
    words = [line for _, line in waiting if line.startswith("#") and not (comments and line.startswith(comments))]
    if layout is None and words:
        layout = _layout(words[0], token_column)
        for row in waiting:
            yield from _row(place, *row, layout, comments, strict)
    yield None


def _layout(line: str, token_column: int | None) -> Layout:
    tabs = "\t" in line.strip()
    cells = line.split("\t") if tabs else [cell for cell in re.split("[ \t]+", line) if cell]
    while not cells[-1].strip():
        cells.pop()
    numbered = len(cells) > 2 and token_column != 1 and _NUMBER.fullmatch(cells[0]) is not None
    return Layout(tabs, len(cells), numbered, token_column or (2 if numbered else 1))


def _row(
    place: Place, number: int, line: str, layout: Layout, comments: str, strict: bool
) -> Iterator[tuple[str, list[str], Layout] | None]:
    if not line.strip():
        yield None
        return
    comment = "#" if layout.numbered else comments
    if line.startswith(_DOCUMENT) or (comment and line.startswith(comment)):
        return
    cells = layout.cells(line)
    where = f"{shown(place)}, line {number}"
    wrong_number = layout.numbered and not _NUMBER.fullmatch(cells[0])
    if strict and (len(cells) != layout.width or wrong_number):
        what = "no number in its first column" if wrong_number else pluralize(len(cells), "column")
        remedy = "correct the line" + ("; # begins comments only with comments: '#'" if line.startswith("#") else "")
        raise UserError(f"{where} has {what}, but the first token of the file has {layout.width} columns; {remedy}")
    if not layout.numbered or cells[0].isdecimal():
        yield where, cells, layout
