"""Queries and keys of cross-lingual contrast (InfoXLM, arXiv 2007.07834), with mix-up contrast.

A sample is a translation pair, as in contrast.py. An example is one pair, or with mix-up two consecutive ones,
x = (x1, x2) and d = (d1, d2), combined as `<s> x1 </s> d1 </s>` and `<s> x2 </s> d2 </s>`. The example's number
determines the order of the sentences in either sequence, which of the two is the query, with `mixup: sides` whether d1
and d2 are exchanged, and the masks; so nothing depends on which rank or micro-batch processes it.

Sources: the paper names (x1 d1, x2 d2) and (x1 d2, d1 x2) as mix-ups; the released code (microsoft/unilm, infoxlm,
xlco_dataset.py) draws the two orders and the exchange of query and key, never (x1 d2, d1 x2), and masks both sides.

Shapes: P pairs, E examples (P or P / 2), S = 2 E sequences, first all queries and then all keys, N = 2 P sentences (pair p
has 2p and 2p + 1), B = max_tokens - 1 tokens of a sentence without `<s>`, K sentences of a sequence, R = 1 + K B.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.packing.contrast import ContrastPairs, place
from dist_metaxlm.data.packing.documents import filled_windows, packed_batch
from dist_metaxlm.data.packing.masking import Masker
from dist_metaxlm.data.packing.spans import groups, spans
from dist_metaxlm.data.sampling.permutation import hash_u64, key
from dist_metaxlm.data.special_tokens import BOS, EOS, PAD
from dist_metaxlm.recipe.schema import CrossLingualContrast

_TEXT_KEY = key("xlco", "text")


def xlco_batch(
    pairs: ContrastPairs,
    masker: Masker,
    draw_key: int,
    config: CrossLingualContrast,
    samples: np.ndarray,
    language: np.ndarray,
    ordinal: np.ndarray,
) -> PackedBatch:
    """The queries of the pairs `samples` [P], and in `keys` their keys; pair p is number `ordinal[p]` of `language[p]`.

    The first of `samples` and their number are multiples of `config.pairs_together`; `draw_key` names the random stream.
    """
    together = config.pairs_together
    examples = samples[::together] // together
    bodies_NB, size_N = sentences(pairs, language, pairs.locate(language, ordinal), config.max_tokens - 1)
    members_2EK = mixed(config, hash_u64(draw_key, examples))
    tokens_SR, length_S = sequences(bodies_NB, size_N, members_2EK.reshape(2 * len(examples), together))
    words_N = _text_hashes(bodies_NB, size_N)
    # a sum: a text is the same in any order of its sentences
    texts = torch.from_numpy(words_N[members_2EK].sum(axis=2, dtype=np.uint64).T.copy().view(np.int64))
    numbers_S = (2 * examples + np.arange(2)[:, None]).reshape(-1)
    if config.mask_rate:
        rows = np.arange(len(tokens_SR)) * tokens_SR.shape[1]
        tokens_SR = masker.mask(tokens_SR, numbers_S, rows, config.mask_rate).inputs
    half = len(examples)
    queries, keys = (
        _packed(tokens_SR[part], length_S[part], numbers_S[part], language[::together], pairs.length)
        for part in (slice(half), slice(half, None))
    )
    return replace(queries, pair_languages=torch.from_numpy(language), texts=texts, keys=keys)


def sentences(
    pairs: ContrastPairs, corpus: np.ndarray, documents: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """([N, B] int64 sentences up to their `</s>`, without `<s>`, cut to B = `longest`, then `<pad>`; [N] their tokens)."""
    source, size, needs_bos = pairs.sentence_places(corpus, documents)
    source, size = source + 1 - needs_bos, size - 1 + needs_bos
    kept = np.minimum(size, longest)
    bodies = np.full(len(size) * longest, PAD, np.int64)
    first = np.arange(len(size)) * longest
    order = np.argsort(corpus, kind="stable")
    for number, where in groups(corpus[order]):
        own = (2 * order[where][:, None] + np.arange(2)).reshape(-1)
        bodies[spans(first[own], kept[own])] = pairs.tokens_of(number)[spans(source[own], kept[own])]
    bodies[(first + kept - 1)[kept < size]] = EOS
    return bodies.reshape(-1, longest), kept


def mixed(config: CrossLingualContrast, draws: np.ndarray) -> np.ndarray:
    """[2, E, K] int64: sentences of each query and each key, by the random bits `draws` [E] of the examples."""
    reverse_first, reverse_second, swap, cross = ((draws >> np.uint64(63 - bit)).astype(np.int64) & 1 for bit in range(4))
    count = len(draws)
    if config.mixup == "none":
        sides = (2 * np.arange(count)[:, None] + np.arange(2)).T[:, :, None]
    else:
        first = 4 * np.arange(count)
        if config.mixup == "order":
            cross = np.zeros_like(cross)
        sides = np.stack(
            [_ordered(first, first + 2 + cross, reverse_first), _ordered(first + 1, first + 3 - cross, reverse_second)]
        )
    return np.where(swap[None, :, None] == 1, sides[::-1], sides)


def _ordered(first: np.ndarray, second: np.ndarray, reverse: np.ndarray) -> np.ndarray:
    """[E, 2]: `first` and `second`, exchanged if `reverse` is 1."""
    return np.stack([np.where(reverse == 1, second, first), np.where(reverse == 1, first, second)], axis=1)


def sequences(bodies: np.ndarray, size: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([S, R] int64 `<s>` and the sentences `members` [S, K] of `bodies` [N, B], then `<pad>`; [S] their tokens)."""
    count, together = members.shape
    longest = bodies.shape[1]
    table = np.full((count, 1 + together * longest), PAD, np.int64)
    table[:, 0] = BOS
    flat, length = table.reshape(-1), np.ones(count, np.int64)
    for column in members.T:
        source = spans(column * longest, size[column])
        flat[spans(np.arange(count) * table.shape[1] + length, size[column])] = bodies.reshape(-1)[source]
        length = length + size[column]
    return table, length


def _text_hashes(bodies: np.ndarray, size: np.ndarray) -> np.ndarray:
    """[N] uint64: equal for sentences of equal tokens (and, except for collisions, only for these)."""
    position = np.arange(bodies.shape[1], dtype=np.uint64)
    hashes = hash_u64(hash_u64(_TEXT_KEY, position)[None, :], bodies)
    hashes[position[None, :] >= size[:, None].astype(np.uint64)] = 0
    return hash_u64(_TEXT_KEY, hashes.sum(axis=1, dtype=np.uint64))


def _packed(tokens: np.ndarray, length: np.ndarray, numbers: np.ndarray, languages: np.ndarray, window: int) -> PackedBatch:
    """A batch with the first `length` [E] tokens of the rows of `tokens` [E, R] as documents, packed into windows."""
    placed = place(length, window)
    first = np.arange(len(tokens)) * tokens.shape[1]
    windows = filled_windows(tokens.reshape(-1), first, placed.start, length, placed.windows, window)
    samples = np.full(len(placed.documents), -1, np.int64)
    samples[np.searchsorted(placed.documents, placed.start)] = numbers
    packed = packed_batch(windows, placed.documents, samples, languages[placed.leaders])
    return replace(packed, starts=torch.from_numpy(placed.start))
