"""SentencePiece's normalisation as a normaliser of the `tokenizers` library.

The `tokenizers` library reads SentencePiece's normalisation table ("precompiled charsmap") by grapheme cluster and
uses the first matching prefix; SentencePiece uses the longest match from left to right, independent of clusters.
The two agree on single characters. Every longer entry of the nmt_nfkc and nfkc tables is the canonical composition of its
characters' own entries, and none begins with a composed character. So the exported normaliser
1. sets a noncharacter between any two characters that a cluster would join, so that the table sees single characters;
2. applies the table;
3. composes (NFC), with a second noncharacter wherever NFC would compose or reorder and SentencePiece does not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, get_args

from dist_metaxlm.recipe.data import Normalisation

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer


NAMES: tuple[str, ...] = get_args(Normalisation)
MARK = "\ufdd2"
"""Noncharacter that pre-tokenizers insert and remove; `normaliser` drops it from text."""
_KEEP, _BLOCK = "\ufdd1", "\ufdd0"
_CONTROLS = r"\x{1}-\x{8}\x{B}\x{E}-\x{1F}\x{7F}\x{8F}\x{9F}"
# Grapheme extenders that are not marks: joiners, Thai and Lao AM, emoji modifiers, tag characters.
_OTHER_EXTENDERS = r"\x{200C}\x{200D}\x{E33}\x{EB3}\x{1F3FB}-\x{1F3FF}\x{E0020}-\x{E007F}"
_HANGUL_SYLLABLES, _HANGUL_VOWELS_AND_FINALS = r"\x{AC00}-\x{D7A3}", r"\x{1160}-\x{11FF}\x{D7B0}-\x{D7FF}"
# Marks that the table turns into combining marks; not derivable from Unicode's pair decompositions.
_SINGLETON_MARKS = {"\u0340": 230, "\u0341": 230, "\u0343": 230, "\u0344": 230, "\uff9e": 8, "\uff9f": 8}


@cache
def table(name: str) -> bytes:
    """SentencePiece's table of a rule; empty for `identity`."""
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(SentencePieceNormalizer(rule_name=name).serialized_model_proto())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def normalisation_name(charsmap: bytes) -> str:
    """The rule of a table; `nmt_nfkc`, XLM-R's, for a table that this version of SentencePiece does not generate."""
    return next((name for name in NAMES if table(name) == charsmap), NAMES[0])


def normaliser(name: str, charsmap: bytes) -> Normalizer:
    """SentencePiece's normalisation `name` (one of NAMES), whose table is `charsmap`, from parts of `tokenizers`."""
    from tokenizers import Regex, normalizers

    replace = normalizers.Replace
    ends = [
        replace(MARK, ""),
        replace(Regex(" {2,}"), " "),
        # SentencePiece does not distinguish U+2581 at the end of a text from the space that it represents.
        replace(Regex(r"[ ▁]+\z"), ""),
        # At the start it does: U+2581 gets a space in front like any other character.
        replace(Regex(r"\A(?=▁)"), " "),
    ]
    return normalizers.Sequence([*(_table_steps(name, charsmap) if charsmap else []), *ends])


def _table_steps(name: str, charsmap: bytes) -> list[Normalizer]:
    from tokenizers import Regex, normalizers

    marks = _composing_marks()
    composing = _character_class(marks)
    replace = normalizers.Replace
    controls = [
        # The library's table panics if it removes all text at the start, and loses the position of the start.
        replace(Regex(rf"\A[{_CONTROLS}]+"), " "),
        replace(Regex(f"[{_CONTROLS}]"), _BLOCK),
    ]
    return [
        *(controls if name == "nmt_nfkc" else []),
        replace(Regex("|".join(_blocked_places(marks))), _BLOCK),
        replace(Regex(rf"(?!\A)(?=[{composing}{_HANGUL_VOWELS_AND_FINALS}])"), _KEEP),
        normalizers.Precompiled(charsmap),
        replace(_KEEP, ""),
        normalizers.NFC(),
        replace(_BLOCK, ""),
    ]


def _blocked_places(marks: dict[str, int]) -> list[str]:
    """Zero-width patterns of places that a cluster or NFC would bridge and SentencePiece's table does not."""
    composing = _character_class(marks)
    characters = [chr(code) for code in range(0xC0, 0x2FA1E)]
    composed = _character_class(c for c in characters if _pair(c))
    reordering = _character_class(c for c in characters if unicodedata.combining(c) and c not in marks)
    places = [
        rf"(?!\A)(?=[\p{{M}}{_OTHER_EXTENDERS}&&[^{composing}]])",
        rf"(?<=[{_HANGUL_SYLLABLES}{composed}])(?=[{composing}\x{{11A8}}-\x{{11C2}}])",
        rf"(?<=[{reordering}])(?=[{composing}])",
    ]
    for order in sorted({order for order in marks.values() if order})[1:]:
        later = _character_class(c for c, other in marks.items() if other == order)
        earlier = _character_class(c for c, other in marks.items() if 0 < other < order)
        places.append(f"(?<=[{later}])(?=[{earlier}])")
    return places


def _composing_marks() -> dict[str, int]:
    """Characters that NFC joins to the one before them -> canonical combining class."""
    marks = dict(_SINGLETON_MARKS)
    for code in range(0xC0, 0x2FA1E):
        pair = _pair(chr(code))
        if pair and unicodedata.normalize("NFC", pair) == chr(code):
            marks[pair[1]] = unicodedata.combining(pair[1])
    return marks


def _pair(character: str) -> str:
    """The two characters of a canonical decomposition, or an empty string."""
    parts = unicodedata.decomposition(character).split()
    return "".join(chr(int(part, 16)) for part in parts) if len(parts) == 2 and parts[0][0] != "<" else ""


def _character_class(characters: Iterable[str]) -> str:
    """Characters as the inside of a regular expression's brackets."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(rf"\x{{{a:X}}}" if a == b else rf"\x{{{a:X}}}-\x{{{b:X}}}" for a, b in ranges)
