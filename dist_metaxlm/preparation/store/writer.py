"""Writing of `.bin/.idx` files: whole arrays of encoded documents at a time, in Megatron's format.

The format is that of megatron-core's `datasets/indexed_dataset.py`; tests compare the files byte for byte with those of
its builder. That builder is not used here: it keeps one Python object per sequence, and importing it takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, compress, islice
from pathlib import Path

import numpy as np

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import HEADER, MAGIC

CHUNK = 256
"""Documents or pairs per encoding batch."""
_CODES = {"int32": 4, "uint16": 8}


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """uint16 if the vocabulary fits (Megatron's own limit), else int32."""
    return np.uint16 if vocab_size < 65500 else np.int32


def text_arrays(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`<s> ids </s>` of each text that has ids, many at a time: ([tokens] ids, [documents] int32 lengths)."""
    source = iter(texts)
    while chunk := list(islice(source, CHUNK)):
        flat, lengths = tokenizer.encode_flat(chunk)
        if (lengths == 2).any():
            flat, lengths = flat[np.repeat(lengths > 2, lengths)], lengths[lengths > 2]
        yield flat.astype(token_dtype(tokenizer.vocab_size)), lengths.astype(np.int32)


def pair_arrays(
    pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, max_tokens: int, dropped: dict[str, int], size: Bytes
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`<s> a </s>` and `b </s>` of each pair, many at a time: ([tokens] ids, [2 * pairs] int32 lengths).

    Pairs longer than `max_tokens` or with a side without ids are counted in `dropped`, the others' bytes in `size`.
    """
    source = iter(pairs)
    while chunk := list(islice(source, CHUNK)):
        flat, counts = tokenizer.encode_flat(list(chain.from_iterable(chunk)))
        sides = counts.reshape(-1, 2) - np.array([0, 1])  # the translation has no <s>
        empty = (counts.reshape(-1, 2) == 2).any(axis=1)
        longer = ~empty & (sides.sum(axis=1) > max_tokens)
        for why, which in (("pairs with an empty side", empty), ("pairs longer than max_pair_tokens", longer)):
            if which.any():
                dropped[why] = dropped.get(why, 0) + int(which.sum())
        kept = ~(empty | longer)
        size.add_pairs(compress(chunk, kept.tolist()))
        stays = np.repeat(np.repeat(kept, 2), counts)
        stays[(np.cumsum(counts) - counts)[1::2]] = False
        yield flat[stays].astype(token_dtype(tokenizer.vocab_size)), sides[kept].reshape(-1).astype(np.int32)


def write_text(prefix: Path, texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, int]:
    """Write one `<s> ids </s>` a text to `prefix`.bin/.idx; returns documents, tokens and bytes of text."""
    size = Bytes()
    documents, tokens = _write(prefix, text_arrays(size.of_texts(texts), tokenizer), tokenizer, 1)
    return {"documents": documents, "tokens": tokens, "bytes": size.total}


def write_bitext(
    prefix: Path, pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, max_tokens: int, dropped: dict[str, int]
) -> dict[str, int]:
    """Write `<s> a </s>` and `b </s>` as one document a pair; omitted pairs are counted in `dropped`.

    Returns pairs, tokens and bytes of text.
    """
    size = Bytes()
    documents, tokens = _write(prefix, pair_arrays(pairs, tokenizer, max_tokens, dropped, size), tokenizer, 2)
    return {"pairs": documents, "tokens": tokens, "bytes": size.total}


class Bytes:
    """Counts UTF-8 bytes."""

    def __init__(self) -> None:
        self.total = 0

    def of_texts(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts, counted."""
        for text in texts:
            self.total += len(text) if text.isascii() else len(text.encode())
            yield text

    def add_pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Count both sides of the pairs."""
        self.total += sum(len(side.encode()) for pair in pairs for side in pair)


def _write(
    prefix: Path, arrays: Iterable[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer, sequences: int
) -> tuple[int, int]:
    """Write both files, or neither; `sequences` a document. Returns documents and tokens."""
    dtype = token_dtype(tokenizer.vocab_size)
    binary, index = prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")
    parts = []
    try:
        with binary.open("wb") as file:
            for tokens, lengths in arrays:
                tokens.tofile(file)
                parts.append(lengths)
        write_index(index, parts, dtype, sequences)
    except BaseException:
        binary.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
        raise
    return sum(part.size for part in parts) // sequences, sum(int(part.sum()) for part in parts)


def write_index(path: Path, parts: list[np.ndarray], dtype: type[np.generic], sequences: int) -> None:
    """Write an `.idx` file for sequences of lengths `parts` (int32 arrays, one after another), `sequences` a document."""
    total = sum(part.size for part in parts)
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, _CODES[np.dtype(dtype).name], total, total // sequences + 1))
        for part in parts:
            file.write(np.ascontiguousarray(part, np.int32).tobytes())
        place = 0
        for part in parts:
            ends = place + np.cumsum(part, dtype=np.int64) * np.dtype(dtype).itemsize
            file.write(np.concatenate([[place], ends])[:-1].astype(np.int64).tobytes())
            place = int(ends[-1]) if ends.size else place
        file.write(np.arange(0, total + 1, sequences, dtype=np.int64).tobytes())
