"""Our SentencePiece model as a Hugging Face tokenizer with equal ids.

The `tokenizers` library reads SentencePiece's normalisation table ("precompiled charsmap") by grapheme cluster and
takes the first matching prefix; SentencePiece takes the longest match from left to right, whatever the clusters.
The two agree on single characters. Every longer entry of the nmt_nfkc table is the canonical composition of its
characters' own entries, and none begins with a composed character. So the exported normaliser
1. sets a noncharacter between any two characters that a cluster would join, so that the table sees single characters;
2. applies the table;
3. composes (NFC), with a second noncharacter wherever NFC would compose or reorder and SentencePiece does not.

What remains different, all of it outside ordinary text: marks after a compatibility character that stands for several
(U+FB01 and a mark), marks left over from a mark's own spacing form (U+00A8 and a mark), U+0344, the noncharacters
U+FDD0 and U+FDD1 themselves (dropped), and ties, where two segmentations have the same score. Names of special tokens
inside a text (`<mask>`) become special tokens, as everywhere in transformers; `split_special_tokens=True` turns it off.
"""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError

SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")
MASK_PIECE = "<mask>"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
_UNIGRAM = 1
_KEEP, _BLOCK = "\ufdd1", "\ufdd0"
_CONTROLS = r"\x{1}-\x{8}\x{B}\x{E}-\x{1F}\x{7F}\x{8F}\x{9F}"
# Grapheme extenders that are not marks: joiners, Thai and Lao AM, emoji modifiers, tag characters.
_OTHER_EXTENDERS = r"\x{200C}\x{200D}\x{E33}\x{EB3}\x{1F3FB}-\x{1F3FF}\x{E0020}-\x{E007F}"
_HANGUL_SYLLABLES, _HANGUL_VOWELS_AND_FINALS = r"\x{AC00}-\x{D7A3}", r"\x{1160}-\x{11FF}\x{D7B0}-\x{D7FF}"
# Marks that the table turns into combining marks; not found from Unicode's pair decompositions.
_SINGLETON_MARKS = {"\u0340": 230, "\u0341": 230, "\u0343": 230, "\u0344": 230, "\uff9e": 8, "\uff9f": 8}

_PROBES = (
    "Hello,  world! ",
    " Ünïcödé und Straße",
    "cafe\u0301 nai\u0308ve",
    "Tiếng Việt e\u0302\u0301 ê\u0301 ậ",
    "Привет",
    "Γειά σου Κόσμε",
    "مرحبا بالعالم شدّة",
    "שָׁלוֹם עולם",
    "नमस्ते दुनिया क़",
    "สวัสดีชาวโลก น้ำ",
    "你好,世界。ＡＢＣ１２３",
    "こんにちは、ｶﾞｷﾞ ~～",
    "안녕하세요 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "ബാംഗ്ലൂർ \u0d46\u0d3e",
    "👩‍👩‍👧 👍🏽 🇫🇷 ❤️",
    "a\tb\nc\u00a0d\u3000e\u200bf\u200dg",
    "\x01start",
    "𠮷野家 龘",
    "½ … ﬁ ①",
    "<0x41>",
    "",
    "   ",
)


def export_tokenizer(model_path: str | Path, directory: str | Path, max_length: int = 512) -> None:
    """Write `model_path` as a tokenizer that `AutoTokenizer.from_pretrained(directory)` opens, with the same ids.

    `directory` gets tokenizer.json, tokenizer_config.json and a copy of the SentencePiece model under XLM-R's name.
    A text becomes `<s> ids </s>`, a pair `<s> a </s> b </s>` as in pretraining (XLM-R puts `</s></s>` between).
    `max_length`: tokens, special ones included, at which `truncation=True` cuts.
    Raises UserError if the model is not one of this project's kind or the installed `tokenizers` gives other ids.
    """
    tokenizer = build_tokenizer(model_path)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copyfile(model_path, folder / SENTENCEPIECE_FILE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": MASK_PIECE,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_tokenizer(model_path: str | Path) -> Any:
    """The `tokenizers.Tokenizer` of a SentencePiece unigram model, checked against SentencePiece on probe strings."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    model = _read_model(model_path)
    # <mask> scores 0 like every special piece; the pre-tokenizer keeps texts from spelling it.
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces] + [(MASK_PIECE, 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=model.trainer_spec.byte_fallback))
    tokenizer.normalizer = _normaliser(model.normalizer_spec.precompiled_charsmap)
    # SentencePiece never finds control and byte pieces in text: cut such a name after its "<".
    bytes_too = "0x[0-9A-F]{2}|" if model.trainer_spec.byte_fallback else ""
    names = f"<(?=(?:{bytes_too}s|/s|pad|unk|mask)>)"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(names), "merged_with_previous"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="first")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    # <mask> takes the space before it, because a masked piece has that space inside.
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in SPECIAL_PIECES]
        + [AddedToken(MASK_PIECE, special=True, normalized=False, lstrip=True)]
    )
    processor = SentencePieceProcessor(model_file=str(model_path))
    for text in _PROBES:
        if tokenizer.encode(text, add_special_tokens=False).ids != processor.encode(text):
            raise UserError(
                f"the exported tokenizer gives other ids than {model_path} for {text!r}; "
                "install the tokenizers and sentencepiece versions of .ci/constraints.txt"
            )
    return tokenizer


def _read_model(model_path: str | Path) -> Any:
    """The parsed SentencePiece model; UserError unless it has the kind, ids and normalisation that we export."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    path = Path(model_path)
    if not path.is_file():
        raise UserError(f"there is no SentencePiece model {path}; run metaxlm prepare tokenizer first")
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is not a SentencePiece model; give the prepared data's tokenizer.model") from error
    spec, remedy = model.normalizer_spec, "train one with metaxlm prepare tokenizer"
    if model.trainer_spec.model_type != _UNIGRAM:
        raise UserError(f"{path} is not a unigram model; {remedy}")
    pieces = tuple(piece.piece for piece in model.pieces[:4])
    if pieces != SPECIAL_PIECES:
        raise UserError(f"{path} begins with the pieces {' '.join(pieces)}, not {' '.join(SPECIAL_PIECES)}; {remedy}")
    plain = spec.add_dummy_prefix and spec.remove_extra_whitespaces and spec.escape_whitespaces
    if spec.name != "nmt_nfkc" or not plain or model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"{path} normalises text by {spec.name!r} with options that the export does not know; {remedy}")
    return model


def _normaliser(charsmap: bytes) -> Any:
    """SentencePiece's nmt_nfkc normalisation from parts of `tokenizers`; see the module's docstring."""
    from tokenizers import Regex, normalizers

    marks = _composing_marks()
    composing = _character_class(marks)
    replace = normalizers.Replace
    return normalizers.Sequence(
        [
            # The library's table panics on a text that it empties at the start, and forgets that the text began there.
            replace(Regex(rf"\A[{_CONTROLS}]+"), " "),
            replace(Regex(f"[{_CONTROLS}]"), _BLOCK),
            replace(Regex("|".join(_blocked_places(marks))), _BLOCK),
            replace(Regex(rf"(?!\A)(?=[{composing}{_HANGUL_VOWELS_AND_FINALS}])"), _KEEP),
            normalizers.Precompiled(charsmap),
            replace(_KEEP, ""),
            normalizers.NFC(),
            replace(_BLOCK, ""),
            replace(Regex(" {2,}"), " "),
            replace(Regex(r" +\z"), ""),
        ]
    )


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
