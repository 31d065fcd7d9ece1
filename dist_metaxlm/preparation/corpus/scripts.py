"""Scripts that are written without spaces between words, or whose letters are syllables (Hangul)."""

from __future__ import annotations

SYLLABLES = (
    (0x1100, 0x11FF),
    (0x3040, 0x30FF),
    (0x3100, 0x318F),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Han, Kana, Bopomofo and Hangul: a letter carries as much as several Latin ones."""
UNSPACED_LETTERS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF))
"""Thai, Lao, Burmese, Khmer; `str.isalnum` is false for their vowel signs."""


def character_class(*groups: tuple[tuple[int, int], ...]) -> str:
    """The ranges as the inside of a character class of a regular expression."""
    return "".join(f"{chr(first)}-{chr(last)}" for group in groups for first, last in group)


UNSPACED = character_class(SYLLABLES, UNSPACED_LETTERS)
