"""How messages count things."""

from __future__ import annotations


def counted(count: int, noun: str, form: str = "") -> str:
    """`1 rank`, `2 ranks`; with `form` "," `1,024 steps`. For nouns whose plural has an s more."""
    return f"{count:{form}} {noun}{'' if count == 1 else 's'}"
