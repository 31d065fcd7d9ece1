"""Training of the SentencePiece unigram model on a temperature-sampled mix of languages.

Unigram model: arXiv 1804.10959. The mix p ~ bytes^alpha is XLM's (arXiv 1901.07291, section 3.1), in bytes.
"""

from __future__ import annotations

import io
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from dist_metaxlm.data.special_tokens import BOS, EOS, PAD, UNK
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.workers.processes import available_cores
from dist_metaxlm.recipe.schema import LEAST_VOCAB, TokenizerConfig

THREADS = 16
"""Fixed: the sums of SentencePiece's EM depend on the number of threads, and the model must not depend on the machine."""
SEED_FACTOR, SEED_LIMITS = 8, (64_000, 1_000_000)
"""Substrings that the EM starts from, as a multiple of the vocabulary and its bounds (the upper one is SentencePiece's
own default). At 16,000 pieces on the quickstart corpus 8 gives no more tokens than 19, in 0.6 of the time."""
REPORT_BYTES = 2_000_000
"""Bytes of each language on which the report is measured."""
POOR = 0.2
"""Share of byte or unknown tokens from which a language is reported as poorly covered."""
SENTENCE_BYTES = 4000
"""Longer paragraphs are cut into pieces of this size for training."""


class Drawable(Protocol):
    """Text of a language, about `size` bytes; `draw` yields paragraphs up to a quota of bytes."""

    @property
    def size(self) -> int:
        """Bytes."""

    def draw(self, quota: int) -> Iterator[str]:
        """The same paragraphs in every run."""


class TextSample:
    """A sample from texts in memory: the first ones, up to the quota."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)
        self.size = _bytes(self._texts)

    def draw(self, quota: int) -> Iterator[str]:
        """The same paragraphs in every run."""
        return _first(self._texts, quota)


def train_tokenizer(
    samples: Mapping[str, Drawable], config: TokenizerConfig, vocab_size: int, path: Path
) -> dict[str, dict[str, float]]:
    """Train on the languages' paragraphs and write the model to `path`; returns a report by language.

    Memory: the sample (config.sample_bytes) and SentencePiece's data for it, independent of the size of the corpus.
    `vocab_size` counts `<mask>`, which is not in the model. Deterministic: the same text gives the same file.
    Errors: UserError if the text cannot fill the vocabulary, naming the largest possible size.
    """
    drawn = draw(samples, config)
    if not any(drawn.values()):
        raise UserError("there is no text to train a tokenizer on; name files in data.text")
    model = _train((text for texts in drawn.values() for text in texts), config, vocab_size)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(model)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return report(Tokenizer(model, path), drawn)


def draw(samples: Mapping[str, Drawable], config: TokenizerConfig) -> dict[str, list[str]]:
    """Language -> paragraphs, in the recipe's mix and size."""
    sizes = {language: sample.size for language, sample in sorted(samples.items()) if sample.size}
    quota = quotas(sizes, config.alpha, config.sample_bytes)
    return {language: list(samples[language].draw(quota[language])) for language in quota if quota[language]}


def quotas(sizes: Mapping[str, int], alpha: float, total: int) -> dict[str, int]:
    """Bytes to draw from each language: p ~ bytes^alpha; the shortfall of a small language goes to the others."""
    result: dict[str, int] = {}
    open_sizes = dict(sizes)
    while open_sizes:
        weight = {language: size**alpha for language, size in open_sizes.items()}
        scale = max(0, total - sum(result.values())) / sum(weight.values())
        full = [language for language, size in open_sizes.items() if weight[language] * scale >= size]
        if not full:
            return result | {language: int(weight[language] * scale) for language in open_sizes}
        for language in full:
            result[language] = open_sizes.pop(language)
    return result


def _cut(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        text = text.replace("\n", " ").replace("\0", "")
        if len(text) * 4 <= SENTENCE_BYTES or len(text.encode()) <= SENTENCE_BYTES:
            yield text
        else:
            step = SENTENCE_BYTES // 4
            yield from (text[start : start + step] for start in range(0, len(text), step))


def _train(texts: Iterable[str], config: TokenizerConfig, vocab_size: int) -> bytes:
    model = io.BytesIO()
    with _interruptible():
        _train_into(model, texts, config, vocab_size)
    return model.getvalue()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once: Python would handle it only when SentencePiece returns, hours later."""
    alone = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if alone and callable(signal.getsignal(signal.SIGINT)) else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _train_into(model: io.BytesIO, texts: Iterable[str], config: TokenizerConfig, vocab_size: int) -> None:
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_cut(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - 1,
            bos_id=BOS,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            byte_fallback=config.byte_fallback,
            character_coverage=config.character_coverage,
            normalization_rule_name=config.normalisation,
            num_threads=THREADS,
            seed_sentencepiece_size=int(np.clip(SEED_FACTOR * vocab_size, *SEED_LIMITS)),
            max_sentence_length=SENTENCE_BYTES + 200,
            train_extremely_large_corpus=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        message = str(error)
        if match := re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message):
            most = int(match[1]) + 1
            less = f"set it to {most} or less, or" if most >= LEAST_VOCAB else f"it fills {most}, less than any model needs:"
            raise UserError(
                f"model.vocab_size {vocab_size} is more than this text can fill; {less} give more text "
                f"(data.tokenizer.sample_bytes limits it to {config.sample_bytes})"
            ) from None
        if "(all_chars_count) > (0)" in message:
            raise UserError(
                "the text to train a tokenizer on has only white space and control characters; name other files in data.text"
            ) from None
        if match := re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message):
            raise UserError(
                f"model.vocab_size {vocab_size} is less than the {match[2]} pieces that characters, bytes and "
                f"special tokens need; set it to more than {match[2]}, or lower "
                "data.tokenizer.character_coverage"
            ) from None
        raise


def report(tokenizer: Tokenizer, drawn: Mapping[str, list[str]]) -> dict[str, dict[str, float]]:
    """How well the tokenizer covers each language, measured on the first REPORT_BYTES of its sample.

    bytes (drawn), tokens_per_word (fertility; words are separated by white space, so it means little for Chinese, Japanese
    or Thai), bytes_per_token, unknown_rate and byte_rate (shares of tokens that are `<unk>` or bytes of characters without a
    piece of their own) and vocabulary_share (share of all ids that the language uses).
    """
    spelled = np.array([re.fullmatch("<0x[0-9A-F]{2}>", piece) is not None for piece in tokenizer.pieces()])
    result = {}
    for language, texts in drawn.items():
        measured = list(_first(texts, REPORT_BYTES))
        rows = tokenizer.encode_batch(measured, threads=available_cores())
        ids = np.fromiter(chain.from_iterable(rows), np.int64)
        tokens = max(1, ids.size)
        result[language] = {
            "bytes": _bytes(texts),
            "tokens_per_word": round(ids.size / max(1, sum(len(text.split()) for text in measured)), 3),
            "bytes_per_token": round(_bytes(measured) / tokens, 3),
            "unknown_rate": round(float((ids == UNK).sum()) / tokens, 6),
            "byte_rate": round(float(spelled[ids].sum()) / tokens, 6),
            "vocabulary_share": round(np.unique(ids).size / tokenizer.vocab_size, 4),
        }
    return result


def poorly_served(by_language: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A sentence for each language of a `report` with more than POOR of its tokens bytes or `<unk>`."""
    for language, row in by_language.items():
        share = row["unknown_rate"] + row["byte_rate"]
        if share > POOR:
            yield (
                f"the tokenizer covers {language!r} poorly: {share:.0%} of its tokens are single bytes or unknown, so "
                "its text is long and hard to learn; use a tokenizer that was trained on this language too"
            )


def _first(texts: Iterable[str], quota: int) -> Iterator[str]:
    for text in texts:
        if quota <= 0:
            return
        yield text
        quota -= len(text.encode())


def _bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)
