"""The quickstart corpus: real text from PyPI packages, written as plain files for the ordinary readers.

Translations: the gettext catalogues inside the wheels of Django, Wagtail and Weblate, translated by people, the same
English strings in dozens of languages. English prose: documentation strings (quickstart_prose.py).
Written: text/<language>.txt (one paragraph a line, blank line between documents) and bitext/en-<language>.tsv.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.corpus.quickstart_prose import prose_documents
from dist_metaxlm.preparation.corpus.quickstart_wheels import WHEELS, Package, find_packages
from dist_metaxlm.preparation.readers.catalogues import base_language, clean, read_mo, read_po_order, runs, usable

MIN_PAIRS = 3000
MIN_LANGUAGES = 25
MAX_LANGUAGES = 40

_CATALOGUE = re.compile(r"(?P<folder>.*)locale/(?P<locale>[^/]+)/LC_MESSAGES/(?P<domain>[^/]+)\.(?:mo|po)$")


@dataclass
class Translations:
    """Clean strings of all catalogues of all packages."""

    documents: list[list[str]] = field(default_factory=list)
    """English strings in the order of their source code, in documents of about DOCUMENT_WORDS words; none twice."""
    languages: dict[str, dict[str, str]] = field(default_factory=dict)
    """Language -> English string -> its translation; languages with the most strings first."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason for omission -> number of strings."""


def collect(folder: Path, log: Callable[[str], None]) -> dict[str, object]:
    """Write the corpus into `folder`; returns a description of its contents, for the manifest.

    Errors: UserError if too few translations are available (no network and none in installed packages).
    """
    packages, note = find_packages(log)
    translations = read_translations(packages, MIN_PAIRS)
    check_enough(translations, note)
    log(f"{len(translations.languages)} languages, {sum(map(len, translations.languages.values()))} translated strings")
    prose = prose_documents(source for package in packages for source in package.read(".py").values())
    (folder / "text").mkdir(parents=True)
    (folder / "bitext").mkdir()
    write_text(folder / "text" / "en.txt", prose)
    write_text(folder / "text" / "en.strings.txt", translations.documents)
    for language, strings in translations.languages.items():
        write_text(
            folder / "text" / f"{language}.txt",
            ([strings[text] for text in document if text in strings] for document in translations.documents),
        )
        lines = (f"{text}\t{strings[text]}\n" for document in translations.documents for text in document if text in strings)
        (folder / "bitext" / f"en-{language}.tsv").write_text("".join(lines), encoding="utf-8")
    return {
        "packages": [package.name for package in packages],
        "note": note,
        "dropped": translations.dropped,
        "pairs": {language: len(strings) for language, strings in translations.languages.items()},
        "prose_documents": len(prose),
    }


def check_enough(translations: Translations, note: str) -> None:
    """Raise UserError for too few languages."""
    if len(translations.languages) >= MIN_LANGUAGES:
        return
    names = " ".join(f"{name}=={version}" for name, version in WHEELS.items())
    raise UserError(
        f"the quickstart corpus needs {MIN_LANGUAGES} languages with {MIN_PAIRS} translated strings and found "
        f"{len(translations.languages)}; {note or 'the wheels hold too few'}; connect to a package index "
        f"once, or install {names}, or name your own text in a recipe with data.corpus: files"
    )


def write_text(path: Path, documents: Iterable[list[str]]) -> None:
    """Write documents as lines with a blank line between them."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents:
            if document:
                file.write("\n".join(document) + "\n\n")


def read_translations(packages: list[Package], min_pairs: int) -> Translations:
    """All usable strings of the packages' catalogues, in languages with at least `min_pairs` of them.

    Where packages or regional variants disagree on a string, the earlier package and then the larger variant wins.
    """
    result = Translations()
    dropped: dict[str, int] = defaultdict(int)
    languages: dict[str, dict[str, str]] = defaultdict(dict)
    known: set[str] = set()
    for package in packages:
        catalogues, orders = _catalogues(package, dropped)
        for place in sorted(catalogues):
            by_locale = catalogues[place]
            order = [clean(text) for text in orders.get(place) or sorted({t for c in by_locale.values() for t in c})]
            fresh = [text for text in dict.fromkeys(order) if text not in known]
            known.update(fresh)
            result.documents += runs(fresh)
            for locale in sorted(by_locale, key=lambda name: (-len(by_locale[name]), name)):
                _merge(languages[base_language(locale) or ""], by_locale[locale], dropped)
    languages = {name: {text: s[text] for text in s.keys() & known} for name, s in languages.items()}
    kept = sorted((name for name, s in languages.items() if len(s) >= min_pairs), key=lambda n: (-len(languages[n]), n))
    dropped["languages below the minimum"] = len(languages) - len(kept)
    result.languages = {name: languages[name] for name in kept[:MAX_LANGUAGES]}
    translated = set().union(*result.languages.values()) if result.languages else set()
    result.documents = [left for document in result.documents if (left := [t for t in document if t in translated])]
    result.dropped = dict(dropped)
    return result


def _catalogues(
    package: Package, dropped: dict[str, int]
) -> tuple[dict[str, dict[str, dict[str, str]]], dict[str, list[str]]]:
    """Place (folder and domain) -> locale -> raw strings; and place -> English strings in source order."""
    catalogues: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for name, blob in package.read(".mo").items():
        match = _CATALOGUE.match(name)
        if match is None or base_language(match["locale"]) is None:
            continue
        strings: dict[str, str] = {}
        try:
            for source, translation in read_mo(blob):
                strings.setdefault(source, translation)
        except ValueError:
            dropped["unreadable catalogues"] += 1
            continue
        catalogues[f"{match['folder']}:{match['domain']}"][match["locale"]] = strings
    longest: dict[str, bytes] = {}
    for name, blob in package.read(".po").items():
        match = _CATALOGUE.match(name)
        if match is not None:
            place = f"{match['folder']}:{match['domain']}"
            longest[place] = max(longest.get(place, b""), blob, key=len)
    return catalogues, {place: read_po_order(blob.decode("utf-8", "replace")) for place, blob in longest.items()}


def _merge(into: dict[str, str], strings: dict[str, str], dropped: dict[str, int]) -> None:
    for raw_source, raw_translation in strings.items():
        source, translation = clean(raw_source), clean(raw_translation)
        if not usable(source, translation):
            dropped["no letters or not translated"] += 1
        elif source in into:
            dropped["second translation of a string"] += 1
        else:
            into[source] = translation
