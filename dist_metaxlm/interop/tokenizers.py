"""Our SentencePiece model as a Hugging Face tokenizer with equal ids.

The ids are equal because the exported normaliser returns the same text as SentencePiece's (interop/normalisation.py), and
because the text is split at spaces only if no piece contains an inner space: then each word has the same pieces as in the
whole text, and `word_ids()` and offsets refer to words.

Remaining differences, all outside ordinary text: marks after a compatibility character that represents several
(U+FB01 and a mark), marks left over from a mark's own spacing form (U+00A8 and a mark), U+0344, the noncharacters
U+FDD0 to U+FDD2 themselves (dropped), and ties, where two segmentations have the same score. Names of special tokens
inside a text (`<mask>`) become special tokens, as everywhere in transformers; `split_special_tokens=True` turns it off.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.normalisation import MARK, NAMES, normaliser

if TYPE_CHECKING:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer


SPECIAL_PIECES = ("<s>", "<pad>", "</s>", "<unk>")
MASK_PIECE = "<mask>"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
WORD_START = "▁"
_UNIGRAM, _NORMAL = 1, 1
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


def export_tokenizer(
    model_path: str | Path, directory: str | Path, max_length: int = 512, added: Sequence[Mapping[str, object]] = ()
) -> None:
    """Write `model_path` as a tokenizer that `AutoTokenizer.from_pretrained(directory)` opens, with the same ids.

    `directory` gets tokenizer.json, tokenizer_config.json and a copy of the SentencePiece model under XLM-R's name.
    A text becomes `<s> ids </s>`, a pair `<s> a </s> b </s>` as in pretraining (XLM-R puts `</s></s>` between).
    `max_length`: tokens, special ones included, at which `truncation=True` cuts. `added`: tokens after `<mask>`, as
    tokenizer.json lists them, in the order of their ids.
    Raises UserError if the model is not one of this project's kind or the installed `tokenizers` gives other ids.
    """
    tokenizer = build_tokenizer(model_path)
    _add_tokens(tokenizer, added)
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


def build_tokenizer(model_path: str | Path) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a SentencePiece unigram model, checked against SentencePiece on probe strings."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    model = _read_model(model_path)
    # <mask> scores 0 like every special piece; the pre-tokenizer keeps texts from spelling it.
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces] + [(MASK_PIECE, 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=model.trainer_spec.byte_fallback))
    by_words, spec = _cuts_at_spaces(model), model.normalizer_spec
    tokenizer.normalizer = normaliser(spec.name, spec.precompiled_charsmap)
    # SentencePiece never matches control and byte pieces in text: split such a name after its "<".
    bytes_too = "0x[0-9A-F]{2}|" if model.trainer_spec.byte_fallback else ""
    names = f"<(?=(?:{bytes_too}s|/s|pad|unk|mask)>)"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(WORD_START, prepend_scheme="first", split=False),
            *(_words() if by_words else []),
            pre_tokenizers.Split(Regex(names), "merged_with_previous"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="first")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    # <mask> includes the space before it, because a masked piece contains that space.
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


def _cuts_at_spaces(model: ModelProto) -> bool:
    """Whether no piece contains an inner space, so that text may be split at spaces (SentencePiece's default)."""
    pieces = [piece.piece for piece in model.pieces if piece.type == _NORMAL]
    return WORD_START in pieces and all(piece.rfind(WORD_START) <= 0 for piece in pieces)


def _words() -> list[PreTokenizer]:
    """Pre-tokenizers that split a text, whose spaces are U+2581, into words with U+2581 in front.

    The space is removed and inserted again, because an inserted one counts as part of the first letter, at which the word's
    offsets then begin. A text that continues after a special token without a space must get none: MARK, in front of each
    text, remains there and is removed together with its inserted space. A space at the end, before an added token, is
    removed as well.
    """
    from tokenizers import Regex, pre_tokenizers

    return [
        pre_tokenizers.Metaspace(MARK, prepend_scheme="always", split=False),
        pre_tokenizers.Split(Regex(rf"{MARK}?{WORD_START}(?=[^{WORD_START}])|{WORD_START}+\z"), "removed"),
        pre_tokenizers.Metaspace(WORD_START, prepend_scheme="always", split=False),
        pre_tokenizers.Split(Regex(WORD_START + MARK), "removed"),
    ]


def _add_tokens(tokenizer: Tokenizer, added: Sequence[Mapping[str, object]]) -> None:
    """Add tokens after `<mask>`, each at its id in `added`."""
    from tokenizers import AddedToken

    for token in added:
        options = {name: bool(token[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
        made = AddedToken(str(token["content"]), special=bool(token.get("special")), **options)
        (tokenizer.add_special_tokens if token.get("special") else tokenizer.add_tokens)([made])
        if tokenizer.token_to_id(str(token["content"])) != token["id"]:
            raise UserError(
                f"added token {token['content']!r} of the imported folder has id {token['id']} in that folder and "
                f"{tokenizer.token_to_id(str(token['content']))} in the export; import the folder again"
            )


def _read_model(model_path: str | Path) -> ModelProto:
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
    if spec.name not in NAMES or not plain or model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"{path} normalises text by {spec.name!r} with options that the export does not support; {remedy}")
    return model
