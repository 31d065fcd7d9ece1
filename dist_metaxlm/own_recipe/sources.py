"""The sources that a user names: `en=corpus/en`, `en-sw=pairs.tsv`, `en-sw=a.en,a.sw`, files or whole folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.readers.files import PACKED, kind
from dist_metaxlm.recipe.data import DataConfig

Files = dict[str, list[Any]]
"""Language or pair -> its entries in the recipe: paths and globs, or `{"moses": [a, b]}`."""
EXAMPLE = "metaxlm init mine.yaml en=corpus/en sw=corpus/sw.txt en-sw=corpus/en-sw.tsv"


def parse_sources(words: Iterable[str]) -> tuple[Files, Files]:
    """Text by language and translations by pair, as the recipe names them.

    Errors: UserError for a word without `=`, a file that does not exist, and a folder without readable files.
    """
    text: Files = {}
    bitext: Files = {}
    for word in words:
        code, entries = _parsed(word)
        (bitext if "-" in code else text).setdefault(code, []).extend(entries)
    if not text:
        raise UserError(f"no text is given, only translations or nothing; give at least one language, for example {EXAMPLE}")
    return text, bitext


def ask_sources(read: Callable[[str], str]) -> list[str]:
    """Ask for sources until an empty answer; `read` shows a question and returns the answer.

    A wrong answer is explained, and asked again.
    """
    words: list[str] = []
    question = "language=path, or pair=path such as en-sw=pairs.tsv (empty: done): "
    while answer := read(question).strip():
        try:
            _parsed(answer)
        except UserError as error:
            question = f"{error}\nagain (empty: done): "
        else:
            words.append(answer)
            question = "another (empty: done): "
    return words


def data_section(text: Files, bitext: Files, directory: str) -> DataConfig:
    """The recipe's `data` with these sources. Errors: UserError for a code that is not a pair of languages."""
    try:
        return DataConfig.model_validate({"directory": directory, "text": text, "bitext": bitext})
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _parsed(word: str) -> tuple[str, list[Any]]:
    """The language or pair of `code=place`, and its entries in the recipe."""
    code, separator, place = (part.strip() for part in word.partition("="))
    if not separator or not code or not place:
        raise UserError(f"source {word!r} is not of the form LANGUAGE=PATH or PAIR=PATH; write for example {EXAMPLE}")
    return code, _entries(code, place, "bitext" if "-" in code else "text")


def _entries(code: str, place: str, what: str) -> list[Any]:
    if what == "bitext" and "," in place and not Path(place).exists():
        sides = place.split(",")
        if len(sides) != 2:
            raise UserError(f"{code}={place} names {len(sides)} files; two files, line by line translations, are expected")
        for side in sides:
            readers.expand([side], code)
        return [{"moses": sides}]
    if Path(place).is_dir():
        return _folder(code, place, what)
    readers.check_formats(readers.expand([place], code), what, code)
    return [place]


def _folder(code: str, place: str, what: str) -> list[str]:
    """A glob for each format in a folder, hidden files left out."""
    known = readers.TEXT_FORMATS if what == "text" else readers.PAIR_FORMATS
    files = [path for path in Path(place).rglob("*") if path.is_file() and not _is_hidden(path, Path(place))]
    endings = Counter(_ending(path) for path in files if kind(path) in known)
    if not endings:
        seen = ", ".join(sorted({path.suffix or path.name for path in files})[:5]) or "no files"
        raise UserError(f"{code}: folder {place} has {seen} and none of {', '.join(known)}; name a folder with such files")
    return [f"{place.rstrip('/')}/**/*{ending}" for ending in sorted(endings)]


def _ending(path: Path) -> str:
    """The name's last one or two suffixes: `.txt`, `.jsonl.gz`."""
    packed = path.suffix.lower() in PACKED
    return "".join(path.suffixes[-2:] if packed else path.suffixes[-1:])


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)
