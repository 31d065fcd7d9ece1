"""The tokenizer: a SentencePiece unigram model, with `<mask>` as an additional id after its last piece."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece

from dist_metaxlm.data.special_tokens import BOS, EOS, PAD, UNK
from dist_metaxlm.errors import UserError

WORD_START = "\u2581"
_SHORT = 100
"""Mean characters of a text below which a list of ids costs less than a separate array."""


class Tokenizer:
    """Text to token ids and back; ids are those of the SentencePiece model, `<mask>` is `vocab_size - 1`."""

    def __init__(self, model: bytes, path: Path) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, TypeError):
            hugging = path.suffix == ".json"
            remedy = (
                "make one of the Hugging Face folder that it is from with metaxlm convert import"
                if hugging
                else "name a .model file in data.tokenizer.path, or delete it if metaxlm prepare has written it, and run "
                "that again"
            )
            raise UserError(f"{path} is not a SentencePiece model; {remedy}") from None
        self.path = path
        self.hash = hashlib.sha256(model).hexdigest()
        """SHA-256 of the model file, hexadecimal."""
        pieces = self._processor.GetPieceSize()
        self.vocab_size = pieces + 1
        """Token ids, `<mask>` included."""
        self.mask_id = pieces
        self._check_ids()
        ids = list(range(pieces))
        self.word_begin = np.zeros(self.vocab_size, dtype=np.bool_)
        """[vocab_size]: the piece begins a word (its first character is U+2581)."""
        self.word_begin[:pieces] = [piece.startswith(WORD_START) for piece in self._processor.IdToPiece(ids)]
        self.special = np.zeros(self.vocab_size, dtype=np.bool_)
        """[vocab_size]: `<s>`, `<pad>`, `</s>`, `<unk>`, `<mask>` and other control pieces."""
        self.special[:pieces] = np.array(self._processor.IsControl(ids)) | np.array(self._processor.IsUnknown(ids))
        self.special[self.mask_id] = True

    @property
    def normalisation(self) -> str:
        """The model's normalisation rule, applied before segmentation: `nmt_nfkc`, `nfkc`, `identity` or another."""
        from sentencepiece import sentencepiece_model_pb2

        model = sentencepiece_model_pb2.ModelProto.FromString(self._processor.serialized_model_proto())
        spec = model.normalizer_spec
        return str(spec.name or ("user_defined" if spec.precompiled_charsmap else "identity"))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Open a model file. Errors: UserError if it is missing, is not a SentencePiece model, or has other special ids."""
        path = Path(path)
        if path.is_dir():
            raise UserError(
                f"tokenizer {path} is a folder; give the SentencePiece model in it, or the tokenizer.model that "
                "metaxlm convert import makes of a Hugging Face folder"
            )
        if not path.is_file():
            raise UserError(f"tokenizer {path} does not exist; run metaxlm prepare or correct data.tokenizer.path")
        return cls(path.read_bytes(), path)

    def _check_ids(self) -> None:
        sp = self._processor
        ids = (sp.bos_id(), sp.pad_id(), sp.eos_id(), sp.unk_id())
        if ids != (BOS, PAD, EOS, UNK):
            raise UserError(
                f"{self.path} has bos, pad, eos, unk at ids {', '.join(map(str, ids))} instead of "
                "0, 1, 2, 3; train it with --bos_id=0 --pad_id=1 --eos_id=2 --unk_id=3, or convert the folder that "
                "has XLM-R's with metaxlm convert import"
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def encode_batch(self, texts: list[str], threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without special tokens; the result does not depend on `threads`."""
        return self._processor.encode(texts, num_threads=threads) if texts else []

    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """([tokens] int32: `<s> ids </s>` of each text, one after the other; [texts] int64 how many of each)."""
        if sum(map(len, texts)) >= _SHORT * len(texts) > 0:
            rows = self._processor.encode(texts, num_threads=1, add_bos=True, add_eos=True, return_type="numpy")
            return np.concatenate(rows), np.fromiter(map(len, rows), np.int64, len(rows))
        rows = self._processor.encode(texts, num_threads=1, add_bos=True, add_eos=True) if texts else []
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), np.int32, int(counts.sum())), counts

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens and `<mask>` are left out."""
        text: str = self._processor.decode([int(i) for i in ids if not self.special[i]])
        return text

    def pieces(self) -> list[str]:
        """The pieces by id, `<mask>` last."""
        return [*self._processor.IdToPiece(list(range(self.mask_id))), "<mask>"]
