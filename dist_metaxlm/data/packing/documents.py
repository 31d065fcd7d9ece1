"""From documents placed in windows to a packed batch: the last step of every packing method.

Shapes: N documents with text, D documents in all (including the padding after a window's last document), W windows of L
tokens, T = W * L, M targets.
"""

from __future__ import annotations

import numpy as np
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.packing.spans import positions_within, spans
from dist_metaxlm.data.special_tokens import PAD


def with_padding(start: np.ndarray, length: np.ndarray, windows: int, window: int) -> np.ndarray:
    """[D] int64 ascending: `start` [N] of the documents of `length` [N] and of the padding after each window's last one.

    A window's documents follow each other without a gap from its start.
    """
    filled = np.bincount(start // window, weights=length, minlength=windows).astype(np.int64)
    padding = (np.arange(windows) * window + filled)[filled < window]
    return np.sort(np.concatenate([start, padding]))


def filled_windows(
    texts: np.ndarray, first: np.ndarray, start: np.ndarray, length: np.ndarray, windows: int, window: int
) -> np.ndarray:
    """[W, L] int64: document n is `length[n]` tokens of `texts` from `first[n]` on, at `start[n]`; the rest `<pad>`."""
    flat = np.full(windows * window, PAD, np.int64)
    flat[spans(start, length)] = texts[spans(first, length)]
    return flat.reshape(windows, window)


def packed_batch(
    tokens: np.ndarray,
    documents: np.ndarray,
    samples: np.ndarray,
    languages: np.ndarray,
    targets: np.ndarray | None = None,
    target_tokens: np.ndarray | None = None,
) -> PackedBatch:
    """The batch of windows `tokens` [W, L] whose documents begin at the flat positions `documents` [D].

    `samples`, `languages`, `targets` [M] and `target_tokens` [M] (none: no targets) are as in `PackedBatch`.
    """
    nothing = np.empty(0, np.int64)
    return PackedBatch(
        tokens=torch.from_numpy(tokens.reshape(-1)),
        positions=torch.from_numpy(positions_within(documents, tokens.size)),
        cu_seqlens=torch.from_numpy(np.append(documents, tokens.size).astype(np.int32)),
        window=tokens.shape[1],
        samples=torch.from_numpy(samples),
        languages=torch.from_numpy(languages),
        targets=torch.from_numpy(nothing if targets is None else targets),
        target_tokens=torch.from_numpy(nothing if target_tokens is None else target_tokens),
    )
