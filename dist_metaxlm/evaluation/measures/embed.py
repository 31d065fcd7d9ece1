"""Sentence vectors: sentences are packed without padding, encoded once and mean-pooled after every layer.

A sentence's vector is the mean over all its tokens, `<s>` and `</s>` included, as in XTREME's Tatoeba script
(google-research/xtreme, `pool_skip_special_token` off), so scores are comparable to published ones.

Shapes: K layers + 1 (0 is the embedding output), N sentences, D documents of a pack, T tokens of a pack, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.packing.contrast import first_fit
from dist_metaxlm.data.packing.documents import filled_windows, packed_batch, with_padding
from dist_metaxlm.data.special_tokens import BOS, EOS

if TYPE_CHECKING:
    from dist_metaxlm.modeling.encoder import Encoder

SPECIALS = 2
"""Tokens that every sentence gets around it: `<s>` and `</s>`."""


@dataclass(frozen=True)
class SentencePack:
    """One packed batch of some of the sentences, with their numbers."""

    batch: PackedBatch
    """The windows; the rest of a window after its last sentence is one document of `<pad>` that no token attends to."""
    index: torch.Tensor
    """[D] int64: number of the sentence that each document is, -1 for padding."""


def pack_sentences(sentences: Sequence[Sequence[int]], window: int, max_tokens: int) -> list[SentencePack]:
    """Pack `<s> ids </s>` of every sentence into windows, at most `max_tokens` tokens (at least one window) a batch.

    Args:
        sentences: N lists of ids without special tokens; cut to `window - 2` ids.
        window: tokens of a window.
        max_tokens: tokens of a batch.
    """
    if not sentences:
        return []
    lengths = np.array([min(len(ids), window - SPECIALS) + SPECIALS for ids in sentences], np.int64)
    bins, offsets, count = first_fit(lengths, window)
    in_place = np.lexsort((offsets, bins))
    per_batch = max(1, max_tokens // window)
    packs = []
    for first in range(0, count, per_batch):
        low, high = np.searchsorted(bins[in_place], [first, first + per_batch])
        members = in_place[low:high]
        starts = (bins[members] - first) * window + offsets[members]
        packs.append(_pack(sentences, members, starts, lengths[members], min(per_batch, count - first), window))
    return packs


def _pack(
    sentences: Sequence[Sequence[int]],
    members: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    windows: int,
    window: int,
) -> SentencePack:
    """Sentences `members` [S] at `starts` [S] of a batch, ascending; each window's rest becomes a `<pad>` document."""
    texts = [token for number in members.tolist() for token in _framed(sentences[number], window)]
    tokens = filled_windows(np.array(texts, np.int64), np.cumsum(lengths) - lengths, starts, lengths, windows, window)
    documents = with_padding(starts, lengths, windows, window)
    index = np.full(len(documents), -1)
    index[np.searchsorted(documents, starts)] = members
    batch = packed_batch(tokens, documents, np.arange(windows), np.zeros(windows, np.int64))
    return SentencePack(batch, torch.from_numpy(index))


def _framed(ids: Sequence[int], window: int) -> list[int]:
    return [BOS, *ids[: window - SPECIALS], EOS]


def mean_pool(states: torch.Tensor, batch: PackedBatch, include_special: bool = True) -> torch.Tensor:
    """Mean of the states [T, H] over the tokens of every document: [D, H] float32.

    Without `include_special` the first and last token of a document are left out (an empty sentence keeps them).
    """
    documents = batch.document_ids
    lengths = batch.cu_seqlens.diff().long()
    weights = torch.ones(states.shape[0], device=states.device)
    if not include_special:
        edge = (batch.positions == 0) | (batch.positions == lengths[documents] - 1)
        weights = (~edge | (lengths <= SPECIALS)[documents]).float()
    totals = torch.zeros(lengths.numel(), states.shape[1], device=states.device)
    totals.index_add_(0, documents, states.float() * weights[:, None])
    counts = torch.zeros(lengths.numel(), device=states.device).index_add_(0, documents, weights)
    return totals / counts[:, None]


def embed(
    encoder: Encoder,
    sentences: Sequence[Sequence[int]],
    window: int = 128,
    max_tokens: int = 8192,
    include_special: bool = True,
) -> torch.Tensor:
    """Mean-pooled vectors of all sentences after the embedding and after every block: [K, N, H] float32.

    Args:
        encoder: the model, on any device; the result is on the same device.
        sentences: N lists of ids without special tokens.
        window: longest sentence in tokens with its special tokens; longer ones are cut.
        max_tokens: tokens that go through the encoder at once.
        include_special: pool over `<s>` and `</s>` as well.
    """
    device = next(encoder.parameters()).device
    pooled: torch.Tensor | None = None
    with inference(encoder):
        for pack in pack_sentences(sentences, window, max_tokens):
            batch = pack.batch.to(device)
            means = torch.stack([mean_pool(states, batch, include_special) for states in encoder.hidden_states(batch)])
            if pooled is None:
                pooled = torch.zeros(means.shape[0], len(sentences), means.shape[2], device=device)
            real = pack.index >= 0
            pooled[:, pack.index[real].to(device)] = means[:, real.to(device)]
    if pooled is None:
        raise ValueError("there are no sentences to embed")
    return pooled


@contextmanager
def inference(encoder: torch.nn.Module) -> Iterator[None]:
    """Disable gradients and dropout; restores the model's mode on exit."""
    training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        encoder.train(training)
