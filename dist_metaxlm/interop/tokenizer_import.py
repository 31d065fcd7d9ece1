"""XLM-R's tokenizer as a SentencePiece model with its pieces in our order, so that model ids and piece ids are the same.

XLM-R (through fairseq) uses the SentencePiece ids shifted by one: <s>=0 <pad>=1 </s>=2 <unk>=3, then piece i of the model
file (whose own order is <unk> <s> </s> ...) at id i + 1, and <mask> last. Here the pieces themselves are in that order.
A folder that transformers 5 has saved holds no SentencePiece file, only tokenizer.json, whose pieces, scores and
normalisation table are the same: the model is rebuilt from these. CamemBERT has the same pieces in another order: its
special tokens have other ids, which are swapped with ours (`order`).
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.normalisation import normalisation_name
from dist_metaxlm.interop.tokenizers import MASK_PIECE, SENTENCEPIECE_FILE, SPECIAL_PIECES
from dist_metaxlm.recipe.schema import LEAST_VOCAB, ModelConfig
from dist_metaxlm.text import pluralize

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto


FAIRSEQ_PIECES = ("<unk>", "<s>", "</s>")
CAMEMBERT_PIECES = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
"""The first ids of CamemBERT; piece i of its SentencePiece file is id i + 4."""
TOKENIZER_JSON = "tokenizer.json"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_UNIGRAM = 1
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_FIELDS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_PROBES = ("Hello, world!", "Größe  und Straße", "Привет, мир", "你好,世界。", "مرحبا بالعالم", "１２ ｱ ﬁ")


@dataclass(frozen=True)
class FolderTokenizer:
    """The tokenizer of a Hugging Face folder as a SentencePiece model."""

    model: bytes
    """Serialised, with our ids."""
    ids: int
    """Token ids, `<mask>` included."""
    order: dict[int, int] = field(default_factory=dict)
    """Our id -> id in the folder, if they differ."""
    added: tuple[dict[str, object], ...] = ()
    """Tokens that the folder adds behind `ids`, as tokenizer.json lists them, in the order of their ids."""


def import_tokenizer(directory: str | Path, config: ModelConfig) -> bytes | None:
    """The SentencePiece model of `read_tokenizer`, for a model of `config.vocab_size` rows."""
    tokenizer = read_tokenizer(directory, config.vocab_size)
    return None if tokenizer is None else tokenizer.model


def read_tokenizer(directory: str | Path, rows: int, camembert: bool = False) -> FolderTokenizer | None:
    """The SentencePiece model of a Hugging Face folder with our ids; None if the folder has none.

    A tokenizer.json of another kind (the byte-level BPE of RoBERTa and ModernBERT) is not a SentencePiece model: None.

    Args:
        directory: the folder.
        rows: rows of the model's embedding; the tokenizer may have fewer ids.
        camembert: whether a SentencePiece file has CamemBERT's ids and not XLM-R's; the file does not record this.

    Raises:
        UserError: when a file is damaged, lacks special pieces, or has more ids than the model has rows.
    """
    folder = Path(directory)
    path = folder / SENTENCEPIECE_FILE
    if path.is_file():
        made: tuple[int, bytes, dict[int, int]] | None = _from_sentencepiece(path, camembert)
    else:
        path = folder / TOKENIZER_JSON
        made = _from_json(path) if path.is_file() else None
    if made is None:
        return None
    pieces, serialised, order = made
    _open(path, serialised)
    ids = pieces + 1
    added = _added_tokens(folder, ids)
    if ids <= rows < ids + len(added):
        raise UserError(
            f"{path} has {ids} ids with <mask> and {pluralize(len(added), 'added token')} more, the model has vocab_size "
            f"{rows}; call model.resize_token_embeddings(len(tokenizer)) and save the folder again, or remove the tokens"
        )
    if ids > rows:
        raise UserError(
            f"{path} makes {ids} ids with <mask>, the model has vocab_size {rows}; use tokenizer and weights of the same "
            "folder"
        )
    _check_roles(folder, [str(token["content"]) for token in added])
    if ids < LEAST_VOCAB:
        raise UserError(
            f"{path} makes {ids} ids with <mask>, but a model needs {LEAST_VOCAB} or more; remove it to "
            "import the weights only"
        )
    return FolderTokenizer(serialised, ids, order, added)


def _from_sentencepiece(path: Path, camembert: bool) -> tuple[int, bytes, dict[int, int]]:
    """Number of pieces, model, and order of ids, of a SentencePiece file in XLM-R's order, CamemBERT's or ours."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path} is not a SentencePiece model; copy the folder again") from None
    first = tuple(piece.piece for piece in model.pieces[:4])
    if first == SPECIAL_PIECES:  # our own export: byte-identical, so it has the same hash
        return len(model.pieces), path.read_bytes(), {}
    if first[:3] != FAIRSEQ_PIECES:
        raise UserError(
            f"{path} begins with {' '.join(first)}, neither XLM-R's order nor ours; "
            "convert the weights of a folder with XLM-R's tokenizer"
        )
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces[3:]]
    if not camembert:
        return (*_serialised(model, pieces), {})
    special = [(name, 0.0, _CONTROL) for name in (*CAMEMBERT_PIECES, *FAIRSEQ_PIECES[1:])]
    return _arranged(model, [*special, *pieces, (MASK_PIECE, 0.0, _CONTROL)])


def _from_json(path: Path) -> tuple[int, bytes, dict[int, int]] | None:
    """Number of pieces, model, and order of ids, of XLM-R's tokenizer.json; None for another kind of tokenizer."""
    from sentencepiece import sentencepiece_model_pb2

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["model"].get("type") != "Unigram":
            return None
        vocabulary = [(str(piece), float(score)) for piece, score in content["model"]["vocab"]]
        plain, table = _table(content["normalizer"])
        charsmap = base64.b64decode(table, validate=True)
        if base64.b64encode(charsmap).decode() != table:  # the tokenizers library would end the process
            raise ValueError("the normalisation table is not in the usual base64")
        control = {str(token["content"]) for token in content.get("added_tokens") or [] if token["special"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not a tokenizer; copy the folder again") from None
    names = {piece for piece, _ in vocabulary}
    if not (charsmap or plain) or not names.issuperset((*SPECIAL_PIECES, MASK_PIECE)):
        raise UserError(
            f"{path} is not XLM-R's kind (a normalisation table or no normaliser, and the pieces "
            f"{' '.join(SPECIAL_PIECES)} and {MASK_PIECE}); remove it to import the weights only"
        )
    model = sentencepiece_model_pb2.ModelProto()
    model.normalizer_spec.name = normalisation_name(charsmap)
    model.normalizer_spec.precompiled_charsmap = charsmap
    model.trainer_spec.model_type = _UNIGRAM
    fallback = model.trainer_spec.byte_fallback = bool(content["model"].get("byte_fallback"))
    kinds = {piece: _BYTE for piece in names if fallback and _BYTE_PIECE.fullmatch(piece)} | dict.fromkeys(control, _CONTROL)
    made = _arranged(model, [(piece, score, kinds.get(piece, _NORMAL)) for piece, score in vocabulary])
    _check_ids(path, made[1], made[2])
    return made


def _arranged(model: ModelProto, pieces: list[tuple[str, float, int]]) -> tuple[int, bytes, dict[int, int]]:
    """Put `pieces` (in the folder's order) into `model` in our order: special pieces first, without `<mask>` (the last id).

    Pieces at the ids of our special pieces are swapped with them. Returns the number of pieces, the bytes, and our id -> id
    in the folder, if they differ.
    """
    places = {piece: place for place, (piece, _, _) in enumerate(pieces)}
    order = list(range(len(pieces)))
    for slot, piece in [*enumerate(SPECIAL_PIECES), (len(pieces) - 1, MASK_PIECE)]:
        other = order.index(places[piece])
        order[slot], order[other] = order[other], order[slot]
    made = _serialised(model, [pieces[place] for place in order[len(SPECIAL_PIECES) : -1]])
    return (*made, {row: place for row, place in enumerate(order) if row != place})


def _added_tokens(folder: Path, ids: int) -> tuple[dict[str, object], ...]:
    """Tokens of a folder at ids from `ids` on; UserError if an id between them is missing."""
    listed: list[dict[str, Any]] = []
    try:
        for name in (TOKENIZER_JSON, "tokenizer_config.json", "added_tokens.json"):
            if listed or not (folder / name).is_file():
                continue
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            if name == TOKENIZER_JSON:
                listed = [dict(token) for token in content.get("added_tokens") or []]
            elif name == "tokenizer_config.json":
                known = content.get("added_tokens_decoder") or {}
                listed = [{"id": int(number), **token} for number, token in known.items()]
            else:
                listed = [{"id": int(number), "content": str(token)} for token, number in content.items()]
        beyond = sorted((token for token in listed if token["id"] >= ids), key=lambda token: token["id"])
        tokens: tuple[dict[str, object], ...] = tuple(
            {key: token[key] for key in _TOKEN_FIELDS if key in token} for token in beyond
        )
        numbers = [int(token["id"]) for token in beyond]
        names = [str(token["content"]) for token in tokens]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"the added tokens of {folder} cannot be read; copy its tokenizer's files again") from None
    if numbers != list(range(ids, ids + len(tokens))) or len(set(names)) != len(names):
        raise UserError(
            f"{folder} adds tokens at the ids {', '.join(map(str, numbers[:3]))}, ... and its tokenizer has {ids} ids; "
            "save it again with tokenizer.save_pretrained"
        )
    return tokens


def _check_roles(folder: Path, added: list[str]) -> None:
    """UserError if an added token has the role of a special one, such as a new mask: training uses XLM-R's own."""
    try:
        content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        given = {role: content[role] for role in _ROLES if role in content}
        roles = {role: token["content"] if isinstance(token, dict) else token for role, token in given.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # without the file, transformers uses XLM-R's
    for role, token in roles.items():
        if token in added:
            raise UserError(
                f"{folder} has the added token {token!r} as its {role}, which training would not use; save the tokenizer "
                f"with its first {role}, or remove its files to import the weights only"
            )


def _serialised(model: ModelProto, pieces: list[tuple[str, float, int]]) -> tuple[int, bytes]:
    """`model` with our special pieces and then `pieces` (text, score, type); how many there are, and the bytes."""
    special = [(piece, 0.0, _UNKNOWN if piece == "<unk>" else _CONTROL) for piece in SPECIAL_PIECES]
    del model.pieces[:]
    for piece, score, kind in special + pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    spec = model.trainer_spec
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = 0, 1, 2, 3
    spec.vocab_size = len(model.pieces)
    return len(model.pieces), bytes(model.SerializeToString(deterministic=True))


def _table(normalizer: dict[str, Any] | None) -> tuple[bool, str]:
    """(Whether a normaliser leaves every character unchanged, its table or that of its first part with one, in base64)."""
    parts = [] if normalizer is None else [normalizer, *normalizer.get("normalizers", [])]
    for part in parts:
        if part["type"] == "Precompiled":
            return False, str(part["precompiled_charsmap"] or "")
    return all(part["type"] in ("Sequence", "Replace") for part in parts), ""


def _open(path: Path, model: bytes) -> SentencePieceProcessor:
    """SentencePiece's processor; UserError if it refuses the model, for example for a duplicate piece."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor: SentencePieceProcessor = SentencePieceProcessor(model_proto=model)
        return processor
    except RuntimeError as error:
        raise UserError(f"{path} is not a usable SentencePiece model ({error}); copy the folder again") from None


def _check_ids(path: Path, model: bytes, order: dict[int, int]) -> None:
    """UserError unless the model gives the ids of the tokenizer.json it was built from."""
    from tokenizers import Tokenizer

    ours = _open(path, model)
    try:
        theirs = Tokenizer.from_file(str(path))
    except BaseException as error:  # the library has no other class, and its panics are not even an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path} is not a tokenizer ({error}); copy the folder again") from None
    for text in _PROBES:
        if theirs.encode(text, add_special_tokens=False).ids != [order.get(token, token) for token in ours.encode(text)]:
            raise UserError(
                f"{path} gives other ids for {text!r} than SentencePiece with its pieces; remove it to import "
                "the weights only"
            )
