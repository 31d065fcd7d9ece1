"""A SentencePiece tokenizer trained in a test, with the special ids of XLM-R's training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sentencepiece


def train_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int) -> Path:
    """Train on `texts`, with at most `vocab_size` pieces; returns the path, `folder/tokenizer.model`."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return folder / "tokenizer.model"
