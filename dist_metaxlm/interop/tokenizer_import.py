"""XLM-R's SentencePiece model with its pieces in our order, so that model ids and piece ids are the same.

XLM-R (through fairseq) uses the SentencePiece ids shifted by one: <s>=0 <pad>=1 </s>=2 <unk>=3, then piece i of the model
file (whose own order is <unk> <s> </s> ...) at id i + 1, and <mask> last. Here the pieces themselves are put in that order.
"""

from __future__ import annotations

from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.tokenizers import SENTENCEPIECE_FILE, SPECIAL_PIECES
from dist_metaxlm.recipe.schema import ModelConfig

FAIRSEQ_PIECES = ("<unk>", "<s>", "</s>")
_UNKNOWN, _CONTROL = 2, 3


def import_tokenizer(directory: str | Path, config: ModelConfig) -> bytes | None:
    """The SentencePiece model of a Hugging Face folder, serialised with our ids; None where the folder has none.

    Raises:
        UserError: when the file is no SentencePiece model, has another order of special pieces, or does not fit the
        vocabulary of `config`.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    path = Path(directory) / SENTENCEPIECE_FILE
    if not path.is_file():
        return None
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path} is not a SentencePiece model; copy the folder again") from None
    pieces, foreign = [(piece.piece, piece.score, piece.type) for piece in model.pieces], False
    if tuple(piece for piece, *_ in pieces[:3]) == FAIRSEQ_PIECES:
        special = [(piece, 0.0, _UNKNOWN if piece == "<unk>" else _CONTROL) for piece in SPECIAL_PIECES]
        pieces, foreign = special + pieces[3:], True
    elif tuple(piece for piece, *_ in pieces[:4]) != SPECIAL_PIECES:
        raise UserError(f"{path} begins with {' '.join(piece for piece, *_ in pieces[:4])}, neither XLM-R's order nor ours; "
                        "convert the weights of a folder with XLM-R's tokenizer")
    if len(pieces) + 1 != config.vocab_size:
        raise UserError(f"{path} makes {len(pieces) + 1} ids with <mask>, the model has vocab_size {config.vocab_size}; "
                        "take tokenizer and weights from the same folder")
    if not foreign:
        return path.read_bytes()  # an export of ours: byte for byte the same model, so the same hash
    del model.pieces[:]
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    spec = model.trainer_spec
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id = 0, 1, 2, 3
    spec.vocab_size = len(pieces)
    return bytes(model.SerializeToString(deterministic=True))
