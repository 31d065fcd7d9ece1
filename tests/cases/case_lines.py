"""Rows 1 and 2: ends of lines, and gettext catalogues."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import polib
from case import BREAKS, Case, put, refused

from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.measures.perplexity import read_prose
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.evaluation import evaluation_texts
from dist_metaxlm.recipe.data import ReadingConfig
from dist_metaxlm.reporting.metrics import read_metrics

READING = ReadingConfig()


# Row 1: text split at what Python calls a line and the format does not.
TEXT = "a" + "b".join(BREAKS) + "c"


def held_out_strings(folder: Path) -> Any:
    rows = [{"en": TEXT, "de": "x"}, {"en": "plain"}]
    put(folder / "s.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return read_strings(folder / "s.jsonl") == rows


class _Words:
    """A tokenizer with an id a word."""

    special = [False] * 9

    def encode(self, text: str) -> list[int]:
        return [1] * len(text.split())


def held_out_prose(folder: Path) -> int:
    put(folder / "p.txt", "one\r\rtwo three\n\nfour\n\n")
    return len([s for s in read_prose(folder / "p.txt", _Words(), 32) if s.ids])  # type: ignore[arg-type]


def metrics(folder: Path) -> int:
    put(folder / "m.jsonl", "".join(json.dumps({"step": n, "note": TEXT}, ensure_ascii=False) + "\n" for n in (1, 2)))
    return len(read_metrics(folder / "m.jsonl"))


def decontaminated(folder: Path) -> Any:
    put(folder / "e.json", json.dumps({"data": [{"context": TEXT}, {"context": "two\nlines"}]}, ensure_ascii=False))
    return [text for _, text in evaluation_texts([str(folder / "e.json")], 1000)] == [TEXT, "two", "lines"]


def all_formats(folder: Path) -> Any:
    line = json.dumps({"en": f"x{TEXT}x", "de": "y"}, ensure_ascii=False)
    files = [put(folder / "a.tsv", f"x{TEXT}x\ty\n"), put(folder / "a.jsonl", line + "\n")]
    moses = (put(folder / "m.en", f"x{TEXT}x\n"), put(folder / "m.de", "y\n"))
    return set(readers.pairs([*files, moses], READING, ("en", "de"))) == {(f"x{TEXT}x", "y")}


def po(
    *messages: tuple[str, str], header: str = "Content-Type: text/plain; charset=UTF-8\\n", encoding: str = "utf-8"
) -> bytes:
    """A catalogue."""
    head = f'msgid ""\nmsgstr "{header}"\n\n' if header else ""
    return (head + "".join(f'msgid "{a}"\nmsgstr "{b}"\n\n' for a, b in messages)).encode(encoding)


def translations(folder: Path, content: bytes, name: str = "a.po") -> list[str]:
    return [right for _, right in readers.pairs([put(folder / name, content)], READING, ("en", "de"))]


def po_breaks(folder: Path) -> list[str]:
    return translations(folder, b"\x0c\n# a\xe2\x80\xa8b\n" + po((f"Open{BREAKS}it", f"Öffne{BREAKS}es"), ("Close", "Zu")))


def mo(encoding: str, charset: str) -> bytes:
    """A compiled catalogue."""
    catalogue = polib.POFile(encoding=encoding)
    catalogue.metadata = {"Content-Type": f"text/plain; charset={charset}"}
    catalogue.append(polib.POEntry(msgid="Open the door", msgstr="Türe öffnen"))
    return bytes(catalogue.to_binary())


def json_pair(folder: Path) -> Any:
    """Spaces that are text stay where a side is put on one line."""
    record = {"en": "10\u00a0000\nlamps\u3000\u2028on", "de": "x"}
    place = put(folder / "a.jsonl", json.dumps(record, ensure_ascii=False) + "\n")
    return list(readers.pairs([place], READING, ("en", "de")))


def gettext(folder: Path, body: str) -> Any:
    """Translations of a catalogue that msgfmt takes."""
    return translations(folder, po() + body.encode())


MSGFMT = {
    "comment without a space": '#x\n#!y\nmsgid "Open it"\nmsgstr "Zu"\n',
    "strings on one line": 'msgid "Open " "it"\nmsgstr "Z" "u"\n',
    "no space before a string": 'msgid"Open it"\nmsgstr"Zu"\n',
    "keywords alone": 'msgid\n"Open it"\nmsgstr\n"Zu"\n',
    "a message on one line": 'msgid "Open it" msgstr "Zu"\n',
    "domain": 'domain "x"\nmsgid "Open it"\nmsgstr "Zu"\n',
    "obsolete and previous": '#~ msgid "a" "b"\n#~ msgstr "c"\n#| msgid "x"\nmsgid "Open it"\nmsgstr "Zu"\n',
    "form feeds between lines": '\f\nmsgid "Open it"\n\v\f\nmsgstr "Zu"\n',
}
latin, koi, sjis, placeholder, unknown = (
    f'MIME-Version: 1.0\\n"\n"Content-Type: text/plain; "\n"charset={name}\\n'
    for name in ("ISO-8859-1", "KOI8-R", "Shift_JIS", "CHARSET", "x-mine")
)
CASES = [
    Case(1, "held-out prose with carriage returns", held_out_prose, 2),
    Case(1, "metrics", metrics, 2),
    Case(1, "held-out strings", held_out_strings, True),
    Case(1, "decontamination by .json", decontaminated, True),
    Case(1, ".tsv, .jsonl and Moses", all_formats, True),
    Case(1, ".po", po_breaks, ["Öffne es", "Zu"]),
    Case(
        2,
        ".po in ISO-8859-1",
        lambda f: translations(f, po(("Go on", "Fährt"), header=latin, encoding="latin-1")),
        ["Fährt"],
    ),
    Case(2, ".po in KOI8-R", lambda f: translations(f, po(("Go", "Да да"), header=koi, encoding="koi8-r")), ["Да да"]),
    Case(
        2,
        ".po in Shift_JIS",
        lambda f: translations(f, po(("Go", "表示する"), header=sjis, encoding="shift_jis")),
        ["表示する"],
    ),
    Case(2, ".mo in ISO-8859-1", lambda f: translations(f, mo("latin-1", "ISO-8859-1"), "a.mo"), ["Türe öffnen"]),
    Case(2, "placeholder CHARSET", lambda f: translations(f, po(("Go", "Fährt"), header=placeholder)), ["Fährt"]),
    Case(2, "unknown charset, in UTF-8", lambda f: translations(f, po(("Go", "Fährt"), header=unknown)), ["Fährt"]),
    Case(
        2,
        "unknown charset, not in UTF-8",
        lambda f: translations(f, po(("Go", "Fährt"), header=unknown, encoding="latin-1")),
        refused("a.po", "0xE4", "is not x-mine, as its header says"),
    ),
    Case(
        2,
        "a message that looks like a header",
        lambda f: translations(f, po(("Content-Type: text/plain; charset=koi8-r", "Fährt es"), header="")),
        ["Fährt es"],
    ),
    Case(2, "byte order mark", lambda f: translations(f, b"\xef\xbb\xbf" + po(("Go", "Fährt"), header=latin)), ["Fährt"]),
    Case(2, "CRLF", lambda f: translations(f, po(("Go", "Fährt")).replace(b"\n", b"\r\n")), ["Fährt"]),
    Case(1, "no-break spaces in .jsonl pairs", json_pair, [("10\u00a0000 lamps\u3000\u2028on", "x")]),
    *(Case(2, name, partial(gettext, body=body), ["Zu"]) for name, body in MSGFMT.items()),
    Case(
        2,
        "a string without its end",
        lambda f: gettext(f, 'msgid "Open it\nmsgstr "Zu"\n'),
        refused("syntax error in line 4"),
    ),
    Case(
        2,
        "header after a blank line",
        lambda f: translations(
            f,
            'msgid ""\n\nmsgstr ""\n"{latin}"\n\nmsgid "Go on"\nmsgstr "Fährt"\n'.replace("{latin}", latin).encode(
                "latin-1"
            ),
        ),
        ["Fährt"],
    ),
    Case(
        2,
        "an empty message with a context before the header",
        lambda f: translations(
            f, b'msgctxt "x"\nmsgid ""\nmsgstr "y"\n\n' + po(("Go", "Fährt"), header=latin, encoding="latin-1")
        ),
        ["Fährt"],
    ),
]
