"""Masked language modelling: MLM on one language, MMLM on several, TLM on translation pairs.

They differ only in the batch (data/), so one function serves all three.
Sources: BERT (arXiv 1810.04805), XLM for TLM (arXiv 1901.07291).
"""

from __future__ import annotations

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.loss import Losses, ObjectiveLoss
from dist_metaxlm.recipe.schema import WindowObjective


def masked_lm_losses(encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of every masked token, from the final states of `batch`.

    Returns:
        losses [M] fp32 and, for each, the index [M] of its language (or language pair).
    """
    losses_M = encoder.masked_lm_loss(states_TH, batch.targets, batch.target_tokens)
    languages_M = batch.languages[torch.div(batch.targets, batch.window, rounding_mode="floor")]
    return losses_M, languages_M


class MaskedLMLoss(ObjectiveLoss[WindowObjective]):
    """Cross-entropy of the masked tokens."""

    def losses(self, encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, config: WindowObjective) -> Losses:
        """See `ObjectiveLoss`; one loss per target."""
        losses, languages = masked_lm_losses(encoder, states_TH, batch)
        return Losses(losses.sum(), losses.detach(), languages)
