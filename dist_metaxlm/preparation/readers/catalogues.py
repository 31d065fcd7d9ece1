"""GNU gettext catalogues, read with polib: `.mo` and `.po` files to clean (source, translation) strings.

Compiled catalogues hold only translated strings that no translator marked as fuzzy.
"""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import polib

DOCUMENT_WORDS = 100

_BLOCK_TAG = re.compile(r"</?(?:br|p|li|ul|ol|div|h[1-6]|td|tr|hr)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_PLACEHOLDER = re.compile(r"%\([^)]*\)[#0\- +]*\d*(?:\.\d+)?[a-zA-Z]|%[-#0+]*\d*[sdifrx]|\{[^{}]*\}|https?://\S+|\S+@\S+")
_SPACE = re.compile(r"\s+")


def read_mo(blob: bytes) -> Iterator[tuple[str, str]]:
    """Pairs (msgid, translation) of a compiled catalogue, contexts taken off, in the order of the file; see `_pairs`.

    Errors: ValueError for a blob that is no UTF-8 `.mo` file.
    """
    try:
        catalogue = polib.mofile(blob)
    except (OSError, struct.error) as error:
        raise ValueError(f"not a compiled catalogue: {error}") from None
    return _pairs(catalogue)


def read_po(text: str) -> Iterator[tuple[str, str]]:
    """Pairs (msgid, translation) of a `.po` file; fuzzy, obsolete and untranslated messages are left out.

    Errors: ValueError naming the line that is no part of a catalogue.
    """
    return _pairs(entry for entry in _po_entries(text) if entry.translated())


def read_po_order(text: str) -> list[str]:
    """The msgids (singular and plural) of a `.po` file in the order of its source code; contexts and fuzziness ignored."""
    return [
        message
        for entry in _po_entries(text)
        if not entry.obsolete
        for message in (entry.msgid, entry.msgid_plural)
        if message
    ]


def _po_entries(text: str) -> list[Any]:
    try:
        # The line break keeps polib from taking a short text for the name of a file.
        return list(polib.pofile(text + "\n"))
    except (OSError, ValueError) as error:
        found = re.search(r"\(line (\d+)\)", str(error))
        raise ValueError(f"syntax error in line {found[1]}" if found else "syntax error") from None


def _pairs(entries: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Of a message with plurals, the plural msgid is paired with the last form (the general plural in all Germanic,
    Romance and Slavic rules) and the singular with the first where the language tells the two apart and has at most
    four forms (with more, form 0 is not the singular)."""
    for entry in entries:
        forms = [entry.msgstr_plural[number] for number in sorted(entry.msgstr_plural)] or [entry.msgstr]
        if entry.msgid_plural:
            yield entry.msgid_plural, forms[-1]
        if entry.msgid and (not entry.msgid_plural or 2 <= len(forms) <= 4):
            yield entry.msgid, forms[0]


def runs(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents of consecutive strings of at least DOCUMENT_WORDS words (the last one: what is left)."""
    document: list[str] = []
    words = 0
    for text in texts:
        document.append(text)
        words += text.count(" ") + 1
        if words >= DOCUMENT_WORDS:
            yield document
            document, words = [], 0
    if document:
        yield document


def clean(text: str) -> str:
    """One line of plain text: markup taken off, entities resolved, white space single. Placeholders stay."""
    text = _TAG.sub("", _BLOCK_TAG.sub(" ", text))
    return _SPACE.sub(" ", html.unescape(text)).strip()


def usable(source: str, translation: str) -> bool:
    """Whether a cleaned pair teaches anything: letters beside the placeholders on both sides, and not the same text."""
    if source.casefold() == translation.casefold():
        return False
    return all(sum(map(str.isalpha, _PLACEHOLDER.sub("", side))) >= 2 for side in (source, translation))


def base_language(locale: str) -> str | None:
    """The language code of a catalogue's locale, or None where its text would mix scripts or is English.

    Regional variants fold into their language (`pt_BR` -> `pt`, `is_IS` -> `is`); simplified Chinese is `zh`;
    a script that is not the language's first (`zh_Hant`, `sr_Latn`, `be_Latn`) is left out.
    """
    language, *rest = locale.replace("-", "_").replace("@", "_").split("_")
    second_script = any(len(part) == 4 and part.isalpha() and part.title() not in ("Hans", "Cyrl") for part in rest)
    traditional = language == "zh" and any(part.upper() in ("TW", "HK", "MO") for part in rest)
    latin = any(part.lower() == "latin" for part in rest)
    if language == "en" or second_script or traditional or latin or not 2 <= len(language) <= 3:
        return None
    return {"no": "nb"}.get(language, language)
