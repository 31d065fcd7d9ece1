"""Replaced token detection (after ELECTRA, arXiv 2003.10555) with random replacements: the example of the how-to page."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.data.objectives.base import Opening
from dist_metaxlm.data.objectives.text import TextSource
from dist_metaxlm.data.packing.documents import packed_batch
from dist_metaxlm.data.sampling.permutation import hash_u64, key
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.loss import Losses, ObjectiveLoss
from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.objectives.base import EncoderPass
from dist_metaxlm.recipe.schema import ModelConfig, WindowObjective


class ReplacedTokens(WindowObjective):
    """Saying of every token whether it was replaced by a random one."""

    name: Literal["rtd"] = "rtd"
    """Objective."""
    rate: float = Field(0.15, gt=0, lt=1)
    """Probability with which a token is replaced."""

    reads = "text"

    def denominator(self, sequence_length: int, mask_rate: float) -> int:
        """Every token is asked, not only the targets of a mask."""
        return self.batch_tokens

    def passes(self, sequence_length: int, mask_rate: float) -> list[EncoderPass]:
        """Full windows; no state reaches the vocabulary."""
        return [EncoderPass(self.batch_tokens, sequence_length)]

    def other_flops(self, model: ModelConfig, sequence_length: int) -> float:
        """One product of two vectors a token, forward and twice backward."""
        return 6.0 * self.batch_tokens * model.hidden


class ReplacedTokensSource(TextSource[ReplacedTokens]):
    """Windows of text in which tokens are replaced; the targets are those that were."""

    def __init__(self, opening: Opening, objective: ReplacedTokens) -> None:
        super().__init__(opening, objective)
        self._key = key(*opening.keys(objective.name), "replace")
        self._ordinary = ~np.asarray(opening.tokenizer.special, np.bool_)

    def batch(self, objective: ReplacedTokens, samples: np.ndarray) -> PackedBatch:
        tokens, documents, languages = self.read(samples)
        # Keyed by sample and position: the same in every layout, on every rank and after every restart.
        draws = hash_u64(hash_u64(self._key, samples)[:, None], np.arange(tokens.shape[1], dtype=np.uint64))
        chosen = self._ordinary[tokens] & ((draws >> np.uint64(32)) < np.uint64(round(objective.rate * 2**32)))
        ids = np.flatnonzero(self._ordinary)
        inputs = np.where(chosen, ids[draws.astype(np.uint32) % len(ids)], tokens)
        replaced = np.flatnonzero(inputs != tokens)
        return packed_batch(inputs, documents, samples, languages, replaced, tokens.reshape(-1)[replaced])


class ReplacedTokensLoss(ObjectiveLoss[ReplacedTokens]):
    """Cross-entropy of a yes or no for each token: its state times its own embedding."""

    def losses(self, encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, config: ReplacedTokens) -> Losses:
        scores_T = (states_TH * encoder.embedding.tokens(batch.tokens)).sum(-1).float()
        labels_T = torch.zeros_like(scores_T).index_fill(0, batch.targets, 1.0)
        losses_T = F.binary_cross_entropy_with_logits(scores_T, labels_T, reduction="none")
        return Losses(losses_T.sum(), losses_T.detach(), batch.languages.repeat_interleave(batch.window))


def register() -> None:
    """What the entry point names."""
    registry.register(ReplacedTokens, f"{__name__}:ReplacedTokensSource", f"{__name__}:ReplacedTokensLoss")
