"""GNU gettext catalogues: compiled `.mo` files to clean (source, translation) strings, and the order of a `.po` file.

Source of the format: GNU gettext manual, section "The Format of GNU MO Files". Compiled catalogues hold only
translated strings that no translator marked as fuzzy.
"""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Iterator

MAGIC = 0x950412DE

_BLOCK_TAG = re.compile(r"</?(?:br|p|li|ul|ol|div|h[1-6]|td|tr|hr)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_PLACEHOLDER = re.compile(r"%\([^)]*\)[#0\- +]*\d*(?:\.\d+)?[a-zA-Z]|%[-#0+]*\d*[sdifrx]|\{[^{}]*\}|https?://\S+|\S+@\S+")
_SPACE = re.compile(r"\s+")
_PO_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def read_mo(blob: bytes) -> Iterator[tuple[str, str]]:
    """Pairs (msgid, translation) of a compiled catalogue, contexts taken off, in the order of the file.

    Of a message with plurals, the plural msgid is paired with the last form (the general plural in all Germanic,
    Romance and Slavic rules) and the singular with the first where the language tells the two apart and has at most
    four forms (with more, form 0 is not the singular). Errors: ValueError for a blob that is no UTF-8 `.mo` file.
    """
    if len(blob) < 20:
        raise ValueError("too short for a compiled catalogue")
    order = "<" if struct.unpack_from("<I", blob)[0] == MAGIC else ">"
    magic, _, count, ids_at, texts_at = struct.unpack_from(f"{order}5I", blob)
    if magic != MAGIC or max(ids_at, texts_at) + 8 * count > len(blob):
        raise ValueError("not a compiled catalogue")
    ids = struct.unpack_from(f"{order}{2 * count}I", blob, ids_at)
    texts = struct.unpack_from(f"{order}{2 * count}I", blob, texts_at)
    for i in range(0, 2 * count, 2):
        message = blob[ids[i + 1]:ids[i + 1] + ids[i]].decode("utf-8").split("\x04")[-1]
        forms = blob[texts[i + 1]:texts[i + 1] + texts[i]].decode("utf-8").split("\x00")
        if not message:
            continue
        singular, _, plural = message.partition("\x00")
        if plural:
            yield plural, forms[-1]
        if not plural or 2 <= len(forms) <= 4:
            yield singular, forms[0]


def read_po_order(text: str) -> list[str]:
    """The msgids (singular and plural) of a `.po` file in the order of its source code; contexts and fuzziness ignored."""
    messages: list[str] = []
    collecting = False
    for line in text.splitlines():
        if line.startswith(("msgid ", "msgid_plural ")):
            collecting = True
            messages.append("")
        elif not line.startswith('"'):
            collecting = False
        if collecting and (match := _PO_TEXT.search(line)):
            messages[-1] += re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), match[1])
    return [message for message in messages if message]


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
