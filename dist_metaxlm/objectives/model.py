"""The module that the engine wraps: an encoder whose forward pass computes one objective's loss."""

from __future__ import annotations

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.contrast import contrast_losses, owned_pairs
from dist_metaxlm.objectives.masked_lm import masked_lm_losses
from dist_metaxlm.recipe.schema import Contrast, MaskedLM, TranslationLM


class PretrainingModel(nn.Module):
    """Encoder plus objectives behind one `forward`, so that gradient hooks and ZeRO see a single module."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: PackedBatch, objective: MaskedLM | TranslationLM | Contrast,
                step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum of the objective's losses over the batch (differentiable), and for metrics each loss with its language.

        The sum is to be divided by a denominator that the recipe fixes, never by the number of items here: a mean over
        any partition of the global batch is then the global mean.
        """
        if isinstance(objective, Contrast):
            losses, languages = contrast_losses(self.encoder, batch, objective, step)
            own = owned_pairs(losses, batch)
            return losses.sum(), losses.detach()[own], languages[own]
        losses, languages = masked_lm_losses(self.encoder, batch, step)
        return losses.sum(), losses.detach(), languages
