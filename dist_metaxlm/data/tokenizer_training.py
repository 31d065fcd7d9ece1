"""Training of the SentencePiece unigram model on a temperature-sampled mix of languages.

Unigram model: arXiv 1804.10959. The mix p ~ bytes^alpha is XLM's (arXiv 1901.07291, section 3.1), in bytes.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import sentencepiece

from dist_metaxlm.data.heldout import hash_fraction
from dist_metaxlm.data.processes import available_cores
from dist_metaxlm.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import TokenizerConfig

THREADS = 16
"""Fixed: the sums of SentencePiece's EM follow the number of threads, and the model must not follow the machine."""
SEED_FACTOR, SEED_LIMITS = 8, (64_000, 1_000_000)
"""Substrings that the EM starts from, as a multiple of the vocabulary and its bounds (the upper one is SentencePiece's
own default). At 16,000 pieces on the quickstart corpus 8 gives no more tokens than 19, in 0.6 of the time."""
SENTENCE_BYTES = 4000
"""Longer paragraphs are cut into pieces of this size for training."""


def train_tokenizer(samples: Mapping[str, Iterable[str]], config: TokenizerConfig, vocab_size: int,
                    path: Path) -> dict[str, object]:
    """Train on the languages' paragraphs and write the model to `path`; returns a report by language.

    Each iterable is walked three times (count, draw, report), so it must be a list or make a new iterator each time.
    `vocab_size` counts `<mask>`, which is not in the model. Deterministic: the same text gives the same file.
    Errors: UserError where the text cannot fill the vocabulary, naming the largest size that it can.
    """
    sizes = {language: sum(len(text.encode()) for text in texts) for language, texts in sorted(samples.items())}
    sizes = {language: size for language, size in sizes.items() if size}
    if not sizes:
        raise UserError("there is no text to train a tokenizer on; name files in data.text")
    quota = quotas(sizes, config.alpha, config.sample_bytes)
    drawn = {language: list(draw(samples[language], quota[language] / sizes[language])) for language in quota}
    model = _train((text for texts in drawn.values() for text in texts), config, vocab_size)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(model)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return report(Tokenizer(model, path), drawn)


def quotas(sizes: Mapping[str, int], alpha: float, total: int) -> dict[str, int]:
    """Bytes to draw from each language: p ~ bytes^alpha; what a small language lacks goes to the others."""
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


def draw(texts: Iterable[str], rate: float) -> Iterator[str]:
    """The paragraphs whose hash falls below `rate`: an even sample of the whole, the same in every run."""
    for text in texts:
        if rate >= 1 or hash_fraction(text) < rate:
            yield text


def _cut(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        text = text.replace("\n", " ").replace("\0", "")
        if len(text) * 4 <= SENTENCE_BYTES or len(text.encode()) <= SENTENCE_BYTES:
            yield text
        else:
            step = SENTENCE_BYTES // 4
            yield from (text[start:start + step] for start in range(0, len(text), step))


def _train(texts: Iterable[str], config: TokenizerConfig, vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_cut(texts), model_writer=model, model_type="unigram", vocab_size=vocab_size - 1,
            bos_id=BOS, pad_id=PAD, eos_id=EOS, unk_id=UNK, byte_fallback=config.byte_fallback,
            character_coverage=config.character_coverage, normalization_rule_name="nmt_nfkc", num_threads=THREADS,
            seed_sentencepiece_size=int(np.clip(SEED_FACTOR * vocab_size, *SEED_LIMITS)),
            max_sentence_length=SENTENCE_BYTES + 200, train_extremely_large_corpus=False, minloglevel=2)
    except (RuntimeError, OSError) as error:
        message = str(error)
        if found := re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message):
            raise UserError(f"model.vocab_size {vocab_size} is more than this text can fill; set it to "
                            f"{int(found[1]) + 1} or less, or give more text") from None
        if found := re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message):
            raise UserError(f"model.vocab_size {vocab_size} is less than the {found[2]} pieces that characters, bytes and "
                            f"special tokens take; set it to more than {found[2]}, or lower "
                            "data.tokenizer.character_coverage") from None
        raise
    return model.getvalue()


def report(tokenizer: Tokenizer, drawn: Mapping[str, list[str]]) -> dict[str, object]:
    """By language: bytes drawn, tokens a word and a byte, share of unknown tokens and of the vocabulary in use."""
    result: dict[str, object] = {}
    for language, texts in drawn.items():
        rows = tokenizer.encode_batch(texts[:500], threads=available_cores())
        tokens = max(1, sum(map(len, rows)))
        used = {token for row in rows for token in row}
        result[language] = {
            "bytes": sum(len(text.encode()) for text in texts),
            "tokens_per_word": round(tokens / max(1, sum(len(text.split()) for text in texts[:500])), 3),
            "bytes_per_token": round(sum(len(text.encode()) for text in texts[:500]) / tokens, 3),
            "unknown_rate": round(sum(row.count(UNK) for row in rows) / tokens, 6),
            "vocabulary_share": round(len(used) / tokenizer.vocab_size, 4)}
    return result
