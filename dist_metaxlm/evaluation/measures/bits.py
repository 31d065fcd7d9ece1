"""Bits per byte of a masked language model, and of a table of word frequencies on the same hidden tokens.

Bits per byte: the negative log2 likelihoods of the hidden tokens, summed, over the bytes (UTF-8) of these tokens' surface
text. A space before a word counts as one byte of it. So the unit does not depend on how finely a tokenizer cuts text, as
perplexity by token does. (Two tokenizers still hide different pieces, so small differences between them mean little.)

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
import re

import numpy as np

from dist_metaxlm.data.tokenizer import WORD_START, Tokenizer
from dist_metaxlm.data.tokens.store import Corpus, TokenStore

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BLOCK = 1 << 14
_BLOCKS = 128
"""At most this many blocks of a corpus are counted, evenly spaced: 2M tokens."""
_PAIR_TOKENS = 1 << 18
"""About this many tokens of a language pair are counted at most, in evenly spaced pairs."""


def piece_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """[V] int64: bytes of every token's surface text; 0 for special tokens."""
    sizes = np.array(
        [
            1 if _BYTE.fullmatch(piece) else len(piece.replace(WORD_START, " ").encode("utf-8"))
            for piece in tokenizer.pieces()
        ],
        np.int64,
    )
    sizes[tokenizer.special] = 0
    return sizes


def bits_per_byte(nats: float, size: int) -> float:
    """A sum of negative log likelihoods in nats over `size` bytes."""
    return nats / math.log(2) / size


def token_counts(
    store: TokenStore, tokenizer: Tokenizer, languages: list[str], pairs: list[str] | None = None
) -> dict[str, np.ndarray]:
    """[V] int64 by language: how often each token occurs in the language's training text, special tokens left out.

    Of a large corpus evenly spaced blocks are counted, 2M tokens in all; of a large language pair evenly spaced pairs.

    Args:
        store: the training store.
        tokenizer: its tokenizer.
        languages: those to count; one without text and translations is left out of the result.
        pairs: language pairs whose sides count as text too; None: all of the store.
    """
    counts: dict[str, np.ndarray] = {}

    def add(language: str, tokens: np.ndarray) -> None:
        table = counts.setdefault(language, np.zeros(tokenizer.vocab_size, np.int64))
        table += np.bincount(tokens, minlength=tokenizer.vocab_size)

    for name in store.languages:
        language = name.split(".")[0]
        if language in languages:
            add(language, _sample(store.text(name).tokens))
    for name in store.pairs if pairs is None else pairs:
        sides = name.split(".")[0].split("-")
        for number, language in enumerate(sides):
            if language in languages:
                add(language, _side(store.bitext(name), number))
    for table in counts.values():
        table[tokenizer.special] = 0
    return counts


def _sample(tokens: np.ndarray) -> np.ndarray:
    if tokens.size <= _BLOCK * _BLOCKS:
        return tokens
    starts = np.linspace(0, tokens.size - _BLOCK, _BLOCKS).astype(np.int64)
    return np.concatenate([tokens[start : start + _BLOCK] for start in starts])


def _side(corpus: Corpus, number: int) -> np.ndarray:
    """The tokens of one side of translation pairs, of evenly spaced pairs if there are many."""
    starts, seconds = corpus.document_starts, corpus.second_starts
    bounds = (starts[:-1], seconds) if number == 0 else (seconds, starts[1:])
    step = max(1, corpus.tokens.size // _PAIR_TOKENS)
    parts = [corpus.tokens[first:last] for first, last in zip(*(bound[::step] for bound in bounds), strict=True)]
    return np.concatenate(parts) if parts else corpus.tokens[:0]


class FrequencyTable:
    """A model of one language that only knows how often each token occurs: (count + 1) / (sum of counts + V)."""

    def __init__(self, counts: np.ndarray, tokenizer: Tokenizer) -> None:
        """`counts`: [V], from `token_counts`."""
        self._nats = -np.log((counts + 1) / (counts.sum() + counts.size))
        pieces = tokenizer.pieces()
        begins = [bool(tokenizer.word_begin[token]) and pieces[token][1:].isalpha() for token in range(counts.size)]
        words = np.flatnonzero(np.array(begins) & (counts > 0))
        self._ranking = words[np.argsort(-counts[words], kind="stable")]

    def nats(self, tokens: list[int]) -> float:
        """Sum of the negative log likelihoods of `tokens`."""
        return float(self._nats[tokens].sum())

    def most_frequent(self, count: int) -> list[int]:
        """The `count` most frequent tokens that begin a word and are letters only."""
        return [int(token) for token in self._ranking[:count]]
