"""Plurals and did-you-mean suggestions for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def pluralize(count: int, noun: str, form: str = "") -> str:
    """`1 rank`, `2 ranks`; with `form` "," `1,024 steps`. For nouns whose plural has an s more."""
    return f"{count:{form}} {noun}{'' if count == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the known word most like this one, else `;`."""
    matches = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {matches[0]}?" if matches else ";"
