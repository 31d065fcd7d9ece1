"""More pieces for an imported model: those of a further tokenizer, with rows that are means of their old pieces' rows.

Pieces and their log probabilities are merged as in Glot500 (arXiv 2305.12182): the old pieces keep ids and scores, new ones
follow. A new row is the mean of the rows of the old pieces that spelled its text, as in Fast Vocabulary Transfer (Gee et
al., EMNLP 2022 industry track). `<mask>` stays the last id.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dist_metaxlm.data.special_tokens import UNK
from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import (
    LOGICAL_CONFIG,
    LOGICAL_TOKENIZER,
    claim_folder,
    publish_folder,
    read_import,
    write_logical,
)
from dist_metaxlm.interop.shard_writer import SHARD_SIZE, write_json
from dist_metaxlm.interop.source_views import ArrangedRows
from dist_metaxlm.interop.tensor_source import FileTensors, HeldTensors
from dist_metaxlm.modeling.sharding import VOCABULARY
from dist_metaxlm.recipe.schema import ModelConfig

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

_NORMAL, _UNIGRAM = 1, 1
WORD_START = "▁"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What `extend_import` did."""

    model: ModelConfig
    added: int
    """New pieces."""
    shared: int
    """Pieces of the further tokenizer that the model had."""
    unreachable: int
    """Pieces left out, because the model's normalisation never leaves such a text."""
    from_unknown: int
    """New pieces with a character that the old tokenizer reads as `<unk>`; their rows are means of the rest, or of all."""


def extend_import(
    directory: str | Path, tokenizer: str | Path, output: str | Path, shard_size: int | str = SHARD_SIZE
) -> Extension:
    """Write the import in `directory` again to `output`, with the pieces of `tokenizer` that it lacks.

    `tokenizer`: a SentencePiece unigram model, such as one that `metaxlm prepare tokenizer` trained on the new languages.
    Rows of old pieces are unchanged, byte for byte. Rows without an id, which the import keeps for an export, are not
    copied: the vocabulary is another one.

    Raises:
        UserError: for an import without a tokenizer, a tokenizer that is not a unigram model, or one without new pieces.
        OSError: when the disk is full; nothing is left behind.
    """
    config, weights, old_model = read_import(directory)
    if old_model is None:
        raise UserError(
            f"{directory} has no {LOGICAL_TOKENIZER}, so the pieces that its rows belong to are unknown; import a folder "
            "that has XLM-R's or CamemBERT's tokenizer"
        )
    old, further = _read(old_model, Path(directory) / LOGICAL_TOKENIZER), _read(Path(tokenizer), Path(tokenizer))
    texts = {piece.piece for piece in old.pieces}
    candidates = [piece for piece in further.pieces if piece.type == _NORMAL]
    reachable = _reachable(old_model, [piece.piece for piece in candidates])
    new = [piece for piece in candidates if piece.piece not in texts and piece.piece in reachable]
    if not new:
        raise UserError(f"{tokenizer} has no piece that {directory} lacks; start from {directory} as it is")
    parts = _segmented(old, [piece.piece for piece in new])
    old.pieces.extend(new)
    old.trainer_spec.vocab_size = len(old.pieces)
    rows = len(old.pieces) + 1
    mask = config.vocab_size - 1
    tails = {name: torch.cat([_means(weights, name, parts, mask), weights.read(name, mask)]) for name in VOCABULARY}
    extended = config.model_copy(update={"vocab_size": rows})
    source = ArrangedRows(_cut(weights, mask), VOCABULARY, rows, {}, HeldTensors(tails))
    _write(source, extended, old.SerializeToString(), Path(output), shard_size)
    return Extension(
        model=extended,
        added=len(new),
        shared=sum(piece.piece in texts for piece in candidates),
        unreachable=sum(piece.piece not in reachable for piece in candidates),
        from_unknown=sum(UNK in ids for ids in parts),
    )


def _write(source: ArrangedRows, config: ModelConfig, tokenizer: bytes, target: Path, shard_size: int | str) -> None:
    partial = claim_folder(target)
    try:
        write_logical(source, config, partial, shard_size)
        (partial / LOGICAL_TOKENIZER).write_bytes(tokenizer)
        write_json(partial / LOGICAL_CONFIG, config.model_dump(mode="json"))
        publish_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(model: bytes | Path, place: Path) -> ModelProto:
    """A SentencePiece unigram model."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(model if isinstance(model, bytes) else model.read_bytes())
    except (DecodeError, OSError) as error:
        raise UserError(
            f"{place} is not a SentencePiece model ({type(error).__name__}); give the tokenizer.model of a prepared "
            "data.directory, or another SentencePiece file"
        ) from None
    if proto.trainer_spec.model_type != _UNIGRAM or not proto.pieces:
        raise UserError(
            f"{place} is not a unigram model, so its scores are no log probabilities; train one with "
            "`metaxlm prepare tokenizer`"
        )
    return proto


def _reachable(model: bytes, pieces: Sequence[str]) -> set[str]:
    """The pieces whose text the model's normalisation leaves as it is."""
    processor = _processor(model)
    return {piece for piece in pieces if processor.normalize(_text(piece)).replace(WORD_START, " ").strip() == _text(piece)}


def _text(piece: str) -> str:
    return piece.replace(WORD_START, " ").strip()


def _segmented(model: ModelProto, pieces: Sequence[str]) -> list[list[int]]:
    """Ids of the old pieces that spell each new piece, its word start included."""
    from sentencepiece import sentencepiece_model_pb2

    plain = sentencepiece_model_pb2.ModelProto()
    plain.CopyFrom(model)
    # The text is a piece already: neither normalised nor given a word start.
    plain.normalizer_spec.Clear()
    plain.normalizer_spec.add_dummy_prefix = False
    plain.normalizer_spec.remove_extra_whitespaces = False
    ids: list[list[int]] = _processor(plain.SerializeToString()).encode(list(pieces))
    return ids


def _processor(model: bytes) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def _means(weights: FileTensors, name: str, parts: Sequence[Sequence[int]], mask: int) -> torch.Tensor:
    """[len(parts), ...]: means of the rows `parts` of a tensor without `<unk>`; the mean of all rows where none is left."""
    whole = weights.read(name, 0, mask)
    wide = whole.float()
    every = wide.mean(0)
    rows = [wide[known].mean(0) if (known := [i for i in ids if i != UNK]) else every for ids in parts]
    return torch.stack(rows).to(whole.dtype)


def _cut(weights: FileTensors, rows: int) -> ArrangedRows:
    """The tensors with the first `rows` rows of the vocabulary."""
    return ArrangedRows(weights, VOCABULARY, rows, {})
