"""GNU gettext catalogues, read with polib: `.mo` and `.po` files to clean (source, translation) strings.

Compiled catalogues hold only translated strings that no translator marked as fuzzy.
"""

from __future__ import annotations

import codecs
import html
import re
import struct
from collections.abc import Iterable, Iterator

import polib

DOCUMENT_WORDS = 100

_BLOCK_TAG = re.compile(r"</?(?:br|p|li|ul|ol|div|h[1-6]|td|tr|hr)\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_PLACEHOLDER = re.compile(r"%\([^)]*\)[#0\- +]*\d*(?:\.\d+)?[a-zA-Z]|%[-#0+]*\d*[sdifrx]|\{[^{}]*\}|https?://\S+|\S+@\S+")
_SPACE = re.compile(r"\s+")
_PO_HEADER = re.compile(r'^[ \t]*msgid[ \t]*(?:""\s*)+msgstr((?:\s*"(?:[^"\\\r\n]|\\.)*")+)', re.M)
"""An empty message, in bytes read as Latin-1, so in every character set that gettext accepts."""
_CONTEXT = re.compile(r'\bmsgctxt(?:\s*"(?:[^"\\\r\n]|\\.)*")+\s*\Z')
"""The context of a message, at the end of the text before it."""
_PO_TOKEN = re.compile(r'[ \t\f\v]*(?:(msg(?:id_plural|id|str|ctxt)(?:\[\d+\])?)|"((?:[^"\\]|\\.)*)")[ \t\f\v]*')
"""A keyword or a string of a message, with the space around it."""
_DOMAIN = re.compile(r'[ \t]*domain[ \t]*"[^"]*"[ \t]*')
_PO_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_CHARSET = re.compile(r"(?:^|\\n)Content-Type:(?:(?!\\n).)*?charset=([\w.:-]+)", re.IGNORECASE)
_ASCII = bytes(range(0x20, 0x7F)) + b"\\u0041\r\n"
"""Characters that a catalogue's character set must encode as in ASCII, as gettext's quotes, keywords and escapes."""


class _Lines(str):
    """A text whose lines end only at line feeds, as in gettext; `str` has more line ends, such as U+2028 and form feed."""

    __slots__ = ()

    def splitlines(self, keepends: bool = False) -> list[str]:
        """Lines without their ends. Without any line feed, carriage returns are the ends."""
        return self.split("\n" if "\n" in self[:-1] else "\r")


def read_mo(blob: bytes) -> Iterator[tuple[str, str]]:
    """Pairs (msgid, translation) of a compiled catalogue, without contexts, in the order of the file; see `_pairs`.

    Errors: ValueError for a blob that is not a `.mo` file or not in the character set of its header.
    """
    try:
        encoding, declared = _charset(_mo_header(blob))
        catalogue = polib.mofile(blob, encoding=encoding)
    except (OSError, struct.error) as error:
        raise ValueError(f"not a compiled catalogue: {error}") from None
    except UnicodeDecodeError as error:
        raise _undecodable(error, declared) from None
    return _pairs(catalogue)


def read_po(blob: bytes) -> Iterator[tuple[str, str]]:
    """Pairs (msgid, translation) of a `.po` file; fuzzy, obsolete and untranslated messages are left out.

    Errors: ValueError naming the line with a syntax error, or the byte that is not in its character set.
    """
    return _pairs(entry for entry in _po_entries(decode_po(blob)) if entry.translated())


def decode_po(blob: bytes) -> str:
    """Text of a `.po` file: UTF-8 after a byte order mark, else in the character set of its header, as for `.mo`.

    Errors: ValueError naming the byte, from 1, that is not in that character set, or is NUL.
    """
    if blob.startswith(codecs.BOM_UTF8):
        encoding, declared = "utf-8", ""
    else:
        encoding, declared = _charset(_po_header(blob.decode("latin-1")))
    try:
        text = blob.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(error, declared) from None
    if "\0" in text:
        raise ValueError(f"byte {blob.index(0) + 1} is a NUL byte, which no text has")
    return text.removeprefix("\ufeff")


def _po_header(text: str) -> str:
    """The translation of the first empty message without a context, which is the header."""
    for match in _PO_HEADER.finditer(text):
        if not _CONTEXT.search(text, max(0, match.start() - 1000), match.start()):
            return "".join(_PO_STRING.findall(match[1]))
    return ""


def _mo_header(blob: bytes) -> str:
    """The translation of the empty string, which gettext sorts first; empty if the catalogue has none."""
    magic = struct.unpack_from("<I", blob)[0]
    if magic not in (polib.MOFile.MAGIC, polib.MOFile.MAGIC_SWAPPED):
        raise struct.error("the magic number is another one")
    order = "<" if magic == polib.MOFile.MAGIC else ">"
    count, originals, translations = struct.unpack_from(f"{order}3I", blob, 8)
    if not count or struct.unpack_from(f"{order}I", blob, originals)[0]:
        return ""
    size, start = struct.unpack_from(f"{order}2I", blob, translations)
    return blob[start : start + size].decode("latin-1").replace("\n", "\\n")


def _charset(header: str) -> tuple[str, str]:
    """(encoding of a catalogue, character set that its header declares or "").

    UTF-8 if the header declares none, the placeholder CHARSET, or an unknown one.
    """
    match = _CHARSET.search(header)
    declared = match[1] if match and match[1].upper() != "CHARSET" else ""
    try:
        known = bool(declared) and _ASCII.decode(declared) == _ASCII.decode("ascii")
    except (LookupError, UnicodeError):
        known = False
    return (declared if known else "utf-8"), declared


def _undecodable(error: UnicodeDecodeError, declared: str) -> ValueError:
    of = f"{declared}, as its header says" if declared else "UTF-8, and no header names another character set"
    return ValueError(f"byte {error.start + 1} (0x{error.object[error.start]:02X}) is not {of}")


def read_po_order(text: str) -> list[str]:
    """The msgids (singular and plural) of a `.po` file in the order of its source code, ignoring contexts and fuzziness."""
    return [
        message
        for entry in _po_entries(text)
        if not entry.obsolete
        for message in (entry.msgid, entry.msgid_plural)
        if message
    ]


def _as_polib_reads(text: str) -> str:
    """The same messages in the subset of gettext's syntax that polib reads, without comments and obsolete messages.

    msgfmt also takes comments without a space after `#`, several strings or keywords on one line, and keywords directly
    before or a line above their string; `domain` names the file to write. Errors: ValueError naming the line.
    """
    readable, flags = list[str](), list[str]()
    for number, line in enumerate(_Lines(text).splitlines(), 1):
        line = line.strip(" \t\r\f\v")
        if line.startswith("#,"):
            flags.append(line)
        elif line.startswith("#~"):
            flags.clear()  # those of an obsolete message must not be read as the next one's
        elif line and not line.startswith("#") and not _DOMAIN.fullmatch(line):
            readable += [*flags, *_message_lines(line, number)]
            flags.clear()
    return "\n".join(readable)


def _message_lines(line: str, number: int) -> list[str]:
    """Keywords with their first string, and further strings, each as a line."""
    lines, end = [], 0
    while end < len(line):
        match = _PO_TOKEN.match(line, end)
        if match is None:
            raise ValueError(f"syntax error in line {number}")
        keyword, string, end = match[1], match[2], match.end()
        lines.append(f'{keyword} ""' if keyword else f'"{string}"')
    return lines


def _po_entries(text: str) -> list[polib.POEntry]:
    readable = _as_polib_reads(text)
    try:
        # The line break prevents polib from interpreting a short text as a file name.
        return list(polib.pofile(_Lines(readable + "\n"), encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError("its keywords are in an order that no message has") from None


def _pairs(entries: Iterable[polib.POEntry]) -> Iterator[tuple[str, str]]:
    """For a message with plurals, the plural msgid is paired with the last form (the general plural in all Germanic,
    Romance and Slavic rules), and the singular with the first form if the language distinguishes the two and has at most
    four forms (with more, form 0 is not the singular)."""
    for entry in entries:
        forms = [entry.msgstr_plural[number] for number in sorted(entry.msgstr_plural)] or [entry.msgstr]
        if entry.msgid_plural:
            yield entry.msgid_plural, forms[-1]
        if entry.msgid and (not entry.msgid_plural or 2 <= len(forms) <= 4):
            yield entry.msgid, forms[0]


def runs(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents of consecutive strings of at least DOCUMENT_WORDS words (the last one: the rest)."""
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
    """One line of plain text: without markup, entities resolved, white space single. Placeholders stay."""
    text = _TAG.sub("", _BLOCK_TAG.sub(" ", text))
    return _SPACE.sub(" ", html.unescape(text)).strip()


def usable(source: str, translation: str) -> bool:
    """Whether a cleaned pair is useful: letters besides placeholders on both sides, and different texts."""
    if source.casefold() == translation.casefold():
        return False
    return all(sum(map(str.isalpha, _PLACEHOLDER.sub("", side))) >= 2 for side in (source, translation))


def base_language(locale: str) -> str | None:
    """The language code of a catalogue's locale, or None if its text would mix scripts or is English.

    Regional variants fold into their language (`pt_BR` -> `pt`, `is_IS` -> `is`); simplified Chinese is `zh`;
    a script other than the language's primary one (`zh_Hant`, `sr_Latn`, `be_Latn`) is left out.
    """
    language, *rest = locale.replace("-", "_").replace("@", "_").split("_")
    second_script = any(len(part) == 4 and part.isalpha() and part.title() not in ("Hans", "Cyrl") for part in rest)
    traditional = language == "zh" and any(part.upper() in ("TW", "HK", "MO") for part in rest)
    latin = any(part.lower() == "latin" for part in rest)
    if language == "en" or second_script or traditional or latin or not 2 <= len(language) <= 3:
        return None
    return {"no": "nb"}.get(language, language)
