"""Tokens that tlm's windows lose: whole pairs packed into windows against a fixed grid on the stream of pairs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from dist_metaxlm.data.packing.bitext import BitextWindows
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError


def measure_packing(folder: Path, lengths: tuple[int, ...] = (128, 512)) -> dict[str, dict[str, float]]:
    """By window length, over the first epoch of all language pairs of the store in `folder`: shares of lost tokens.

    `grid_inert`: tokens of pairs cut by the edges of a grid; `padding`: empty tokens of the packed windows; `left_out`:
    tokens of pairs in no window. `tokens_per_second`: of packing and reading windows of all pairs, in order or scattered.

    Raises:
        UserError: for a store without translations.
    """
    store = TokenStore.open(folder)
    if not store.pairs:
        raise UserError(f"--store {folder} has no translations; give one that has")
    corpora = [store.bitext(pair) for pair in store.pairs]
    result = {}
    for length in lengths:
        windows = BitextWindows(corpora, store.pairs, length, (1,))
        cut, total, filled, room, placed_pairs = 0, 0, 0, 0, 0
        for number, corpus in enumerate(corpora):
            starts, ends = corpus.document_starts[:-1], corpus.document_starts[1:]
            cut += int((ends - starts)[starts // length != (ends - 1) // length].sum())
            total += int(ends[-1])
            count = int(windows.counts[number])
            placed = windows.locate(np.full(count, number), np.arange(count))
            filled += int((placed.end - placed.first).sum())
            room += count * length
            placed_pairs += len(placed.pair)
        pairs = sum(map(len, corpora))
        result[str(length)] = {
            "pairs": pairs,
            "tokens_per_pair": total / pairs,
            "grid_inert": cut / total,
            "padding": 1 - filled / room,
            "left_out": 1 - placed_pairs / pairs,
            "tokens_per_second": _rate(windows, len(corpora), 64 * length, True),
            "scattered_tokens_per_second": _rate(windows, len(corpora), 64 * length, False),
        }
    return result


def _rate(windows: BitextWindows, corpora: int, tokens: int, ahead: bool) -> float:
    """Tokens per second of one thread: `ahead`: in the order of a rank, else scattered windows, each of another chunk."""
    generator, seconds = np.random.default_rng(1), []
    count = tokens // windows.length
    for number in range(40):
        corpus = generator.integers(0, corpora, count)
        ordinal = (number * count + np.arange(count)) // corpora if ahead else generator.integers(0, windows.counts[corpus])
        start = time.perf_counter()
        windows.read(corpus, ordinal, ordinal)
        seconds.append(time.perf_counter() - start)
    return tokens / statistics.mean(seconds)
