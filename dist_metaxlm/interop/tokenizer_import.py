"""XLM-R's tokenizer as a SentencePiece model with its pieces in our order, so that model ids and piece ids are the same.

XLM-R (through fairseq) uses the SentencePiece ids shifted by one: <s>=0 <pad>=1 </s>=2 <unk>=3, then piece i of the model
file (whose own order is <unk> <s> </s> ...) at id i + 1, and <mask> last. Here the pieces themselves are put in that order.
A folder that transformers 5 has saved holds no SentencePiece file, only tokenizer.json, whose pieces, scores and
normalisation table are the same: the model is built again from these.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.tokenizers import MASK_PIECE, SENTENCEPIECE_FILE, SPECIAL_PIECES
from dist_metaxlm.recipe.schema import ModelConfig

FAIRSEQ_PIECES = ("<unk>", "<s>", "</s>")
TOKENIZER_JSON = "tokenizer.json"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_UNIGRAM = 1
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_PROBES = ("Hello, world!", "Größe  und Straße", "Привет, мир", "你好,世界。", "مرحبا بالعالم", "１２ ｱ ﬁ")


def import_tokenizer(directory: str | Path, config: ModelConfig) -> bytes | None:
    """The SentencePiece model of a Hugging Face folder, serialised with our ids; None where the folder has none.

    A tokenizer.json of another kind (the byte-level BPE of RoBERTa and ModernBERT) is no SentencePiece model: None.

    Raises:
        UserError: when a file is damaged, has another order of special pieces, or does not fit the vocabulary of `config`.
    """
    path = Path(directory) / SENTENCEPIECE_FILE
    if path.is_file():
        model: tuple[int, bytes] | None = _from_sentencepiece(path)
    else:
        path = Path(directory) / TOKENIZER_JSON
        model = _from_json(path) if path.is_file() else None
    if model is None:
        return None
    pieces, serialised = model
    _open(path, serialised)
    if pieces + 1 != config.vocab_size:
        raise UserError(
            f"{path} makes {pieces + 1} ids with <mask>, the model has vocab_size {config.vocab_size}; "
            "take tokenizer and weights from the same folder"
        )
    return serialised


def _from_sentencepiece(path: Path) -> tuple[int, bytes]:
    """Number of pieces and the model, from a SentencePiece file in XLM-R's order or ours."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path} is not a SentencePiece model; copy the folder again") from None
    first = tuple(piece.piece for piece in model.pieces[:4])
    if first == SPECIAL_PIECES:
        return len(model.pieces), path.read_bytes()  # an export of ours: byte for byte the same, so the same hash
    if first[:3] != FAIRSEQ_PIECES:
        raise UserError(
            f"{path} begins with {' '.join(first)}, neither XLM-R's order nor ours; "
            "convert the weights of a folder with XLM-R's tokenizer"
        )
    return _serialised(model, [(piece.piece, piece.score, piece.type) for piece in model.pieces[3:]])


def _from_json(path: Path) -> tuple[int, bytes] | None:
    """Number of pieces and the model, from the tokenizer.json of XLM-R; None for another kind of tokenizer."""
    from sentencepiece import sentencepiece_model_pb2

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model"].get("type") != "Unigram":
            return None
        vocabulary = [(str(piece), float(score)) for piece, score in content["model"]["vocab"]]
        table = _table(content["normalizer"])
        charsmap = base64.b64decode(table or "", validate=True)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a tokenizer; copy the folder again") from None
    names = tuple(piece for piece, _ in vocabulary)
    if not charsmap or names[:4] != SPECIAL_PIECES or names[-1] != MASK_PIECE:
        raise UserError(
            f"{path} is not XLM-R's kind (a normalisation table, {' '.join(SPECIAL_PIECES)} first, {MASK_PIECE} "
            "last); remove it to import the weights only"
        )
    model = sentencepiece_model_pb2.ModelProto()
    model.normalizer_spec.name = "nmt_nfkc"
    model.normalizer_spec.precompiled_charsmap = charsmap
    model.trainer_spec.model_type = _UNIGRAM
    fallback = model.trainer_spec.byte_fallback = bool(content["model"].get("byte_fallback"))
    pieces = [
        (piece, score, _BYTE if fallback and _BYTE_PIECE.fullmatch(piece) else _NORMAL) for piece, score in vocabulary[4:-1]
    ]
    made = _serialised(model, pieces)
    _check_ids(path, made[1])
    return made


def _serialised(model: Any, pieces: list[tuple[str, float, int]]) -> tuple[int, bytes]:
    """`model` with our special pieces and then `pieces` (text, score, type); how many there are, and the bytes."""
    special = [(piece, 0.0, _UNKNOWN if piece == "<unk>" else _CONTROL) for piece in SPECIAL_PIECES]
    del model.pieces[:]
    for piece, score, kind in special + pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    spec = model.trainer_spec
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = 0, 1, 2, 3
    spec.vocab_size = len(model.pieces)
    return len(model.pieces), bytes(model.SerializeToString(deterministic=True))


def _table(normalizer: dict[str, Any]) -> str | None:
    """The normalisation table (base64) of a normaliser or of the first part that has one."""
    for part in (normalizer, *normalizer.get("normalizers", [])):
        if part["type"] == "Precompiled":
            return str(part["precompiled_charsmap"])
    return None


def _open(path: Path, model: bytes) -> Any:
    """SentencePiece's processor; UserError for what it refuses, such as a piece that is there twice."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError(f"{path} is no usable SentencePiece model ({error}); copy the folder again") from None


def _check_ids(path: Path, model: bytes) -> None:
    """UserError unless the model gives the ids of the tokenizer.json it was built from."""
    from tokenizers import Tokenizer

    theirs, ours = Tokenizer.from_file(str(path)), _open(path, model)
    for text in _PROBES:
        if theirs.encode(text, add_special_tokens=False).ids != ours.encode(text):
            raise UserError(
                f"{path} gives other ids for {text!r} than SentencePiece with its pieces; remove it to import "
                "the weights only"
            )
