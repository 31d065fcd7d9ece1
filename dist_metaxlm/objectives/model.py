"""The module that the engine wraps: an encoder whose forward pass computes one objective's loss."""

from __future__ import annotations

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.contrast import contrast_losses, owned_pairs
from dist_metaxlm.objectives.masked_lm import masked_lm_losses
from dist_metaxlm.recipe.schema import AnyObjective, Contrast


class PretrainingModel(nn.Module):
    """Encoder plus objectives behind one `forward`, so that gradient hooks and ZeRO see a single module."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: PackedBatch, objective: AnyObjective,
                step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum of the objective's losses over the batch (differentiable), and for metrics each loss with its language.

        The sum is to be divided by a denominator that the recipe fixes, never by the number of items here: a mean over
        any partition of the global batch is then the global mean.
        """
        states_TH = self.encoder(batch, last_layer=layer_read(objective), step=step)
        return objective_losses(self.encoder, states_TH, batch, objective)

    def states_after(self, batch: PackedBatch, layer: int) -> torch.Tensor:
        """[T, H]: states of `batch` after block `layer`, for what only looks at them (collective where the model is cut)."""
        return self.encoder(batch, last_layer=layer)


def layer_read(objective: AnyObjective) -> int | None:
    """The block whose states an objective reads; None: the final states."""
    return objective.layer if isinstance(objective, Contrast) else None


def objective_losses(encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch,
                     objective: AnyObjective) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `PretrainingModel` returns, from the states that the objective reads; `encoder` has the head."""
    if isinstance(objective, Contrast):
        losses, languages = contrast_losses(states_TH, batch, objective)
        own = owned_pairs(losses, batch)
        return losses.sum(), losses.detach()[own], languages[own]
    losses, languages = masked_lm_losses(encoder, states_TH, batch)
    return losses.sum(), losses.detach(), languages
