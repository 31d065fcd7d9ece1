"""The held-out split: source strings, their translations and some prose that no training text may contain.

The split goes by source string, so no translation of a held-out string is trained on in any language. Texts are
compared by `text_key`, which ignores case, punctuation and white space.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypedDict

import numpy as np

from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.text import pluralize

PIVOT = "en"
MIN_WORDS, MAX_WORDS = 3, 30
CANDIDATES = 50
"""Source strings kept per requested held-out string: those with the lowest hashes."""
COVERAGE = 0.84
"""Share of the held-out strings that each language should have."""
MAX_SHARE = 0.15
"""Largest share of the source strings that is held out."""
COUNTED_CANDIDATES = 400
"""Held-out translations from which evaluation counts a language in its mean (evaluation/heldout.py)."""
TEXT_BYTES, TEXT_SHARE, TEXT_MINIMUM = 150_000, 0.05, 1_000_000
"""Prose held out per language: approximate bytes, largest share; none if it has less than the minimum."""

_PUNCTUATION = string.punctuation + "“”„‘’‚«»‹›…–—¿¡。，、；：？！（）「」『』《》【】،؛؟·"
_ASCII_GAPS = dict.fromkeys(map(ord, string.punctuation), " ")
_GAPS = re.compile(rf"[{re.escape(_PUNCTUATION)}\s]+")

Excluded = Mapping[str, set[str]]
"""Language -> keys of the texts that must not be trained on."""


def text_key(text: str) -> str:
    """Key that is equal for equivalent texts: compatibility-normalised, case folded, no punctuation."""
    if text.isascii():
        return " ".join(text.lower().translate(_ASCII_GAPS).split())
    return _GAPS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip(" ")


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2.0**64


@dataclass
class Source:
    """A source string and all translations seen."""

    text: str
    translations: dict[str, list[str]]


class Candidates:
    """The source strings with the lowest hashes, independent of their order; bounded memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sources: dict[str, Source] = {}
        self._order: dict[str, float] = {}
        self._threshold = 1.0

    def add(self, source: str, language: str, translation: str) -> None:
        """Add one pair."""
        key = text_key(source)
        if key not in self.sources:
            fraction = hash_fraction(key)
            if not key or fraction >= self._threshold:
                return
            self.sources[key], self._order[key] = Source(source, {}), fraction
            if len(self.sources) > 2 * self.limit:
                self._shrink()
        if key in self.sources:
            known = self.sources[key].translations.setdefault(language, [])
            if translation not in known:
                known.append(translation)

    def _shrink(self) -> None:
        kept = sorted(self._order, key=lambda key: (self._order[key], key))[: self.limit]
        self._threshold = self._order[kept[-1]]
        self._order = {key: self._order[key] for key in kept}
        self.sources = {key: self.sources[key] for key in kept}

    def ordered(self) -> list[tuple[str, Source]]:
        """Keys and sources by ascending hash."""
        if len(self.sources) > self.limit:
            self._shrink()
        return [(key, self.sources[key]) for key in sorted(self._order, key=lambda key: (self._order[key], key))]


def read_candidates(bitext: Mapping[str, list[Path]], count: int) -> Candidates:
    """Candidates of all pairs that have the pivot on one side."""
    candidates = Candidates(max(20_000, CANDIDATES * count))
    for pair, paths in bitext.items():
        first, second = pair.split("-")
        if PIVOT not in (first, second):
            continue
        for left, right in readers.pairs(paths):
            if first == PIVOT:
                candidates.add(left, second, right)
            else:
                candidates.add(right, first, left)
    return candidates


def choose(candidates: Candidates, count: int) -> list[tuple[str, dict[str, str]]]:
    """At most `count` sources: (key, {language: text}), chosen so that each language has its share of them.

    Greedy cover: each pick is the source that most helps the languages furthest behind, weighted by how few sources
    they have left. A text that two sources share in a language is not a candidate in that language.
    """
    suitable = _suitable(candidates)
    count = min(count, int(MAX_SHARE * len(candidates.sources)), len(suitable))
    languages = sorted({language for _, texts in suitable for language in texts} - {PIVOT})
    has = np.array([[language in texts for language in languages] for _, texts in suitable], dtype=np.float64)
    chosen: list[int] = []
    if not count or not languages:
        return []
    free = np.ones(len(suitable), dtype=bool)
    have = np.zeros(len(languages))
    for _ in range(count):
        left = np.maximum(has[free].sum(axis=0), 1.0)
        weight = np.maximum(np.minimum(COVERAGE * count, have + left) - have, 0.0) / left + 1e-6
        best = int(np.argmax(np.where(free, has @ weight, -1.0)))
        chosen.append(best)
        free[best] = False
        have += has[best]
    return [suitable[index] for index in chosen]


def _suitable(candidates: Candidates) -> list[tuple[str, dict[str, str]]]:
    ordered = candidates.ordered()
    uses = Counter(
        (language, text_key(texts[0])) for _, source in ordered for language, texts in source.translations.items()
    )
    result = []
    for key, source in ordered:
        if not MIN_WORDS <= len(key.split()) <= MAX_WORDS:
            continue
        texts = {PIVOT: source.text}
        for language, seen in sorted(source.translations.items()):
            translation_key = text_key(seen[0])
            if translation_key and translation_key != key and uses[language, translation_key] == 1:
                texts[language] = seen[0]
        if len(texts) > 1:
            result.append((key, texts))
    return result


def held_out_documents(language: str, paths: list[Path], candidates: Candidates) -> Iterator[list[str]]:
    """Documents of a language to keep out of training: picked by hash, none that repeats a sentence of the bitext."""
    size = sum(path.stat().st_size * (1 if path.suffix not in (".gz", ".xz") else 3) for path in paths)
    if size < TEXT_MINIMUM:
        return
    threshold = min(TEXT_SHARE, TEXT_BYTES / size)
    sentences = set(candidates.sources) if language == PIVOT else set()
    for document in readers.documents(paths):
        if hash_fraction(" ".join(document)) < threshold and not any(text_key(text) in sentences for text in document):
            yield document


class Counts(TypedDict):
    """What is held out."""

    strings: int
    """Source strings."""
    asked: int
    by_language: dict[str, int]
    """Language -> strings in it, English included."""
    text_bytes: dict[str, int]
    """Language -> bytes of prose."""


def write(folder: Path, text: Mapping[str, list[Path]], bitext: Mapping[str, list[Path]], count: int) -> Counts:
    """Choose the split and write strings.jsonl, text/<language>.txt and excluded.json; returns counts for the log."""
    candidates = read_candidates(bitext, count) if count else Candidates(1)
    chosen = choose(candidates, count)
    excluded: dict[str, set[str]] = {}
    (folder / "text").mkdir(parents=True)
    with (folder / "strings.jsonl").open("w", encoding="utf-8") as file:
        for key, texts in chosen:
            excluded.setdefault(PIVOT, set()).add(key)
            for language, seen in candidates.sources[key].translations.items():
                excluded.setdefault(language, set()).update(map(text_key, seen))
            file.write(json.dumps(texts, ensure_ascii=False) + "\n")
    prose = {}
    for language, paths in text.items() if count else ():
        held = list(held_out_documents(language, paths, candidates))
        if held:
            body = "".join("\n".join(document) + "\n\n" for document in held)
            (folder / "text" / f"{language}.txt").write_text(body, encoding="utf-8")
            excluded.setdefault(language, set()).update(text_key(line) for document in held for line in document)
            prose[language] = len(body.encode())
    listed = {language: sorted(keys) for language, keys in sorted(excluded.items())}
    (folder / "excluded.json").write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
    strings = {language: sum(language in texts for _, texts in chosen) for language in sorted(excluded)}
    return {"strings": len(chosen), "asked": count, "by_language": strings, "text_bytes": prose}


def shortfalls(chosen: Mapping[str, int], asked: int) -> Iterator[str]:
    """A sentence if languages have too few held-out translations to count in evaluation's headline figure.

    chosen: language -> its held-out strings, English included. asked: `data.heldout_strings`.
    """
    few = {code: count for code, count in chosen.items() if code != PIVOT and count < COUNTED_CANDIDATES}
    if not chosen or set(chosen) == {PIVOT}:
        yield (
            "warning: no translations with English are held out, so evaluation will have no retrieval and no headline "
            f"figure; give data.bitext with {PIVOT} to have them"
        )
    elif few:
        listed = ", ".join(f"{code} {count}" for code, count in sorted(few.items()))
        missing = (
            "evaluation will have no headline figure"
            if len(few) == len(chosen) - (PIVOT in chosen)
            else "they do not count in the headline figure"
        )
        wanted = round(COUNTED_CANDIDATES / COVERAGE)
        remedy = f"raise data.heldout_strings to {wanted}" if asked < wanted else "give more translations with English"
        yield (
            f"warning: {pluralize(len(few), 'language')} with fewer than {COUNTED_CANDIDATES} held-out translations "
            f"({listed}): {missing}; {remedy}, and prepare into an empty folder"
        )


def read_excluded(folder: Path) -> dict[str, set[str]]:
    """What `write` excluded."""
    listed = json.loads((folder / "excluded.json").read_text(encoding="utf-8"))
    return {language: set(keys) for language, keys in listed.items()}


HEAD, HEAD_KEY = 64, 12
"""If the first HEAD characters of a text give HEAD_KEY characters of key, plus an equal margin for characters that combine
across the cut, the text is looked up by these first; most texts need no more."""


class HeldOut:
    """Whether a text is held out; for most texts the first characters decide."""

    def __init__(self, keys: set[str]) -> None:
        self._keys = keys
        self._heads = {key[:HEAD_KEY] for key in keys}

    def __contains__(self, text: str) -> bool:
        if not self._keys:
            return False
        if len(text) > HEAD:
            head = text_key(text[:HEAD])
            if len(head) >= 2 * HEAD_KEY and head[:HEAD_KEY] not in self._heads:
                return False
        return text_key(text) in self._keys


def training_documents(documents: Iterable[list[str]], keys: set[str], dropped: dict[str, int]) -> Iterator[str]:
    """Documents as single strings, without held-out paragraphs (counted in `dropped`)."""
    held = HeldOut(keys)
    for document in documents:
        kept = [text for text in document if text not in held] if keys else document
        if len(kept) < len(document):
            dropped["held-out paragraphs"] = dropped.get("held-out paragraphs", 0) + len(document) - len(kept)
        if kept:
            yield " ".join(kept)


def training_pairs(
    pairs: Iterable[tuple[str, str]], name: str, excluded: Excluded, dropped: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """Pairs of the language pair `name` without a held-out side; the others are counted in `dropped`."""
    left_held, right_held = (HeldOut(excluded.get(language, set())) for language in name.split("-"))
    for left, right in pairs:
        if left in left_held or right in right_held:
            dropped["held-out pairs"] = dropped.get("held-out pairs", 0) + 1
        else:
            yield left, right
