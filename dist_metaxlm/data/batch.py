"""The packed batch: the only format in which tokens are passed from the loader to the model.

Legend of shape suffixes: T tokens of the micro-batch, W windows, L tokens of a window (T = W * L), D documents,
M targets (predicted tokens), P translation pairs, E examples (of xlco: a query and its key).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch of W windows of L tokens; documents never cross a window and attention never crosses a document.

    `targets` and `target_tokens` have M entries, the same number in every micro-batch of an objective unless a window
    had fewer eligible tokens; the loss is divided by a constant from the recipe, never by M.
    """

    tokens: torch.Tensor
    """[T] int64: input ids, masks applied."""
    positions: torch.Tensor
    """[T] int64: position inside the document, from 0."""
    cu_seqlens: torch.Tensor
    """[D + 1] int32: first token of each document in the flat batch, and T. Window starts are document starts."""
    window: int
    """L, tokens of a window."""
    samples: torch.Tensor
    """[W] int64: sample number n of each window in its phase and objective. For contrast [D]: 2n and 2n + 1 for the
    sentences of pair n, -1 for padding, because how sentences share windows depends on how many pairs a rank has."""
    languages: torch.Tensor
    """[W] int64: index of the window's language (or language pair) in the loader's list."""
    targets: torch.Tensor
    """[M] int64: flat positions whose states predict a token, ascending."""
    target_tokens: torch.Tensor
    """[M] int64: the tokens to predict: the original ones at these positions, for clm the ones after them."""
    pairs: torch.Tensor | None = None
    """[P, 2] int64, contrast only: document numbers (into cu_seqlens) of a sentence and of its translation."""
    pair_languages: torch.Tensor | None = None
    """[P] int64, contrast and xlco: index of each pair's language pair."""
    starts: torch.Tensor | None = None
    """[E] int64, xlco only: flat position of the `<s>` of each example's sequence."""
    texts: torch.Tensor | None = None
    """[E, 2] int64, xlco only: hashes of the words of each example's query and key before masking."""
    keys: PackedBatch | None = None
    """xlco only: the keys that belong to the queries in this batch; packed separately."""

    @classmethod
    def outline(cls, positions: torch.Tensor, cu_seqlens: torch.Tensor, samples: torch.Tensor, window: int) -> PackedBatch:
        """A batch with document boundaries only: what pipeline stages after the first need."""
        nothing = positions.new_empty(0)
        return cls(nothing, positions, cu_seqlens, window, samples, nothing, nothing, nothing)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> PackedBatch:
        """The same batch in page-locked memory, for asynchronous copies to a CUDA device."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, PackedBatch):
                value = value._mapped(change)
            changed[field.name] = change(value) if isinstance(value, torch.Tensor) else value
        return PackedBatch(**changed)

    @property
    def sample_languages(self) -> torch.Tensor:
        """[n] int64: index of the language (or language pair) of each sample: of each pair, or else of each window."""
        return self.languages if self.pair_languages is None else self.pair_languages

    @property
    def token_numbers(self) -> torch.Tensor:
        """[T] int64: a number per token that is the same in every layout; keys the dropout masks."""
        if self.samples.numel() * self.window == self.positions.numel():
            offsets = torch.arange(self.window, device=self.samples.device)
            return (self.samples.unsqueeze(1) * self.window + offsets).view(-1)
        return self.samples[self.document_ids] * self.window + self.positions

    @property
    def document_ids(self) -> torch.Tensor:
        """[T] int64: number of the document that each token belongs to."""
        ends = self.cu_seqlens[1:].to(torch.int64)
        return torch.bucketize(torch.arange(self.positions.numel(), device=ends.device), ends, right=True)
