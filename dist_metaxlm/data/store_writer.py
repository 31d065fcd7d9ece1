"""Writing of token stores: texts encoded by one process per core, in order, with bounded memory.

The `.bin/.idx` files come from megatron-core's own `IndexedDatasetBuilder`.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from dist_metaxlm.data.processes import available_cores
from dist_metaxlm.data.tokenizer import BOS, EOS, Tokenizer

CHUNK = 256
"""Texts that travel to a worker together."""

_tokenizer: Tokenizer | None = None


def token_dtype(vocab_size: int) -> Any:
    """uint16 where the vocabulary fits (Megatron's own limit), else int32."""
    return np.uint16 if vocab_size < 65500 else np.int32


class Encoder:
    """Encodes streams of texts with `workers` processes; the output does not depend on their number."""

    def __init__(self, tokenizer: Tokenizer, workers: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.workers = workers or available_cores()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Encoder:
        if self.workers > 1:
            # spawn: the caller may hold threads (torch, MPI) that a fork would tear
            self._pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _load, (str(self.tokenizer.path),))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def encode(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Token ids of each text, in order, without special tokens."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        for ids, lengths in self._chunks(texts):
            yield from np.split(ids.astype(dtype, copy=False), np.cumsum(lengths)[:-1])

    def _chunks(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, list[int]]]:
        source = iter(texts)
        if self._pool is None:
            while chunk := list(islice(source, CHUNK)):
                yield _encode(chunk, self.tokenizer)
            return
        waiting: deque[Future[tuple[np.ndarray, list[int]]]] = deque()
        while chunk := list(islice(source, CHUNK)):
            waiting.append(self._pool.submit(_encode, chunk))
            if len(waiting) > 2 * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _load(path: str) -> None:
    global _tokenizer
    _tokenizer = Tokenizer.load(path)


def _encode(texts: list[str], tokenizer: Tokenizer | None = None) -> tuple[np.ndarray, list[int]]:
    tokenizer = tokenizer or _tokenizer
    assert tokenizer is not None
    rows = tokenizer.encode_batch(texts)
    flat = np.fromiter((token for row in rows for token in row), dtype=np.int32)
    return flat.astype(token_dtype(tokenizer.vocab_size)), [len(row) for row in rows]


def write_text(prefix: Path, texts: Iterable[str], encoder: Encoder) -> dict[str, int]:
    """Write one `<s> ids </s>` a text to `prefix`.bin/.idx; returns documents, tokens and bytes of text."""
    counts = {"documents": 0, "tokens": 0, "bytes": 0}

    def counted() -> Iterator[str]:
        for text in texts:
            counts["bytes"] += len(text.encode())
            yield text

    bos, eos = _edges(encoder)
    with _Builder(prefix, encoder.tokenizer.vocab_size) as builder:
        for ids in encoder.encode(counted()):
            if ids.size:
                counts["tokens"] += builder.add(np.concatenate([bos, ids, eos]))
                counts["documents"] += 1
    return counts


def write_bitext(prefix: Path, pairs: Iterable[tuple[str, str]], encoder: Encoder, max_tokens: int,
                 dropped: dict[str, int]) -> dict[str, int]:
    """Write `<s> a </s>` and `b </s>` as one document a pair; longer pairs than `max_tokens` are counted in `dropped`.

    Returns pairs, tokens and bytes of text.
    """
    counts = {"pairs": 0, "tokens": 0, "bytes": 0}

    def flat() -> Iterator[str]:
        for pair in pairs:
            counts["bytes"] += sum(len(side.encode()) for side in pair)
            yield from pair

    bos, eos = _edges(encoder)
    with _Builder(prefix, encoder.tokenizer.vocab_size) as builder:
        sides = encoder.encode(flat())
        for first, second in zip(sides, sides, strict=True):
            if not first.size or not second.size:
                dropped["empty side"] = dropped.get("empty side", 0) + 1
            elif first.size + second.size + 3 > max_tokens:
                dropped["longer than max_pair_tokens"] = dropped.get("longer than max_pair_tokens", 0) + 1
            else:
                counts["tokens"] += builder.add(np.concatenate([bos, first, eos]), np.append(second, eos))
                counts["pairs"] += 1
    return counts


def _edges(encoder: Encoder) -> np.ndarray:
    """`<s>` and `</s>`, each an array of one."""
    return np.array([[BOS], [EOS]], dtype=token_dtype(encoder.tokenizer.vocab_size))


class _Builder:
    """megatron-core's builder, finished or its files removed at the end of the block."""

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self._bin, self._index = prefix.with_name(f"{prefix.name}.bin"), prefix.with_name(f"{prefix.name}.idx")
        self._dtype = token_dtype(vocab_size)

    def __enter__(self) -> _Builder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # megatron-core's advice on optional CUDA packages
            from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        self._builder = IndexedDatasetBuilder(str(self._bin), dtype=self._dtype)
        return self

    def add(self, *sequences: np.ndarray) -> int:
        """Write one document; returns its tokens."""
        lengths = [sequence.size for sequence in sequences]
        self._builder.add_document(np.concatenate(sequences), lengths)
        return sum(lengths)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._builder.finalize(str(self._index))
            return
        self._builder.data_file.close()
        self._bin.unlink(missing_ok=True)
