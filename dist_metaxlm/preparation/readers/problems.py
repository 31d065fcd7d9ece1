"""Problems in the user's files: raised at once, or collected so that one run reports all of them.

Readers call a `Report` for a record (line, row, unit, message) or a file that cannot be read. `REFUSE` raises, and
reading stops at the fault. `Problems` counts, quotes the first ones, and lets the reader continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.data import ReadingConfig
from dist_metaxlm.text import pluralize

QUOTED = 20
"""Number of problems quoted per language or pair; the others are counted."""


class Empty(UserError):
    """A file without text: skipping it loses nothing."""


class WrongRecipe(UserError):
    """A problem that no setting may skip, such as a pattern that matches no file or sides of unequal length."""


class Report:
    """The receiver of the readers' problems; this class raises the first."""

    records = 0
    """Records that could not be read."""

    def record(self, error: UserError) -> None:
        """Report an unreadable record; the reader continues with the next one if this returns."""
        raise error

    def file(self, error: UserError) -> None:
        """Report an unreadable file or rest of a file; the reader continues with the next one if this returns."""
        raise error


REFUSE = Report()


@dataclass
class Problems(Report):
    """Problems of one language or pair."""

    empty: int = 0
    """Files without text."""
    files: int = 0
    """Files that cannot be read completely."""
    records: int = 0
    wrong: int = 0
    """Problems that cannot be skipped."""
    quoted: list[str] = field(default_factory=list)
    """The first problems, at most QUOTED of each kind."""
    first: str = ""
    """The first problem that loses text."""

    def record(self, error: UserError) -> None:
        """Count and quote."""
        self.first = self.first or str(error)
        self.records += 1
        self._quote(error, self.records)

    def file(self, error: UserError) -> None:
        """Count the problem by kind, and quote it."""
        kind = "empty" if isinstance(error, Empty) else "wrong" if isinstance(error, WrongRecipe) else "files"
        if kind != "empty":
            self.first = self.first or str(error)
        number = getattr(self, kind) + 1
        setattr(self, kind, number)
        self._quote(error, number)

    def _quote(self, error: UserError, number: int) -> None:
        if number <= QUOTED:
            self.quoted.append(str(error))

    def __bool__(self) -> bool:
        return self.total > 0

    @property
    def total(self) -> int:
        """All problems."""
        return self.empty + self.files + self.records + self.wrong

    def refused(self, reading: ReadingConfig, what: str, files: int, records: int) -> list[str]:
        """Why the recipe's policy does not allow these problems; empty if it does.

        `what` names the recipe's field, `files` and `records` are the totals, including the unreadable ones.
        """
        if reading.on_error == "refuse":
            if self.total == 1 and not self.wrong:
                return [f"{self.quoted[0]}, or leave out what cannot be read with data.reading.on_error: skip"]
            hidden = self.total - len(self.quoted)
            return self.quoted + ([f"{what}: {pluralize(hidden, 'more problem', ',')} of these kinds"] if hidden else [])
        if self.wrong:
            return self.quoted
        shares = [
            f"{what}: {number:,} of {pluralize(of, unit, ',')} cannot be read, more than data.reading.max_skipped "
            f"{reading.max_skipped:g} allows (the first: {self.first}); correct them, or raise max_skipped"
            for number, of, unit in ((self.files, files, "file"), (self.records, records, "record"))
            if number > reading.max_skipped * of
        ]
        return shares

    def as_json(self) -> dict[str, object]:
        """Manifest entry: counts of skipped records and files, and the first reasons."""
        return {
            "empty_files": self.empty,
            "unreadable_files": self.files,
            "unreadable_records": self.records,
            "first": self.quoted,
        }

    def line(self, name: str) -> str:
        """For the log."""
        counts = (
            pluralize(self.empty, "file", ",") + " without text",
            pluralize(self.files, "unreadable file", ","),
            pluralize(self.records, "unreadable record", ","),
        )
        return f"{name}: left out " + ", ".join(
            part for part, number in zip(counts, (self.empty, self.files, self.records), strict=True) if number
        )


def raise_all(sentences: Sequence[str]) -> None:
    """Raise one UserError with all of these sentences, one a line; do nothing if the list is empty."""
    if len(sentences) == 1:
        raise UserError(sentences[0])
    if sentences:
        raise UserError(
            f"{pluralize(len(sentences), 'problem')} in the files of the recipe (data.reading.on_error: skip leaves out and "
            "counts those of data.text and data.bitext that can be left out):\n  " + "\n  ".join(sentences)
        )
