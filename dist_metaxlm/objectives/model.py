"""The module that the engine wraps: an encoder whose forward pass computes one objective's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.contrast import contrast_losses, owned_pairs
from dist_metaxlm.objectives.denoising_alignment import Pointer, denoising_losses
from dist_metaxlm.objectives.masked_lm import masked_lm_losses
from dist_metaxlm.objectives.xlco import PROJECTION, MomentumContrast, XlcoHead
from dist_metaxlm.recipe.schema import AnyObjective, Contrast, CrossLingualContrast, DenoisingAlignment, PairObjective

OWN = "objectives."
"""How the names of parameters begin that belong to an objective and not to the encoder."""


class PretrainingModel(nn.Module):
    """Encoder plus objectives behind one `forward`, so that gradient hooks and ZeRO see a single module."""

    def __init__(self, encoder: Encoder, objectives: Sequence[AnyObjective] = ()) -> None:
        """`objectives`: those of the phase, some of which bring parameters or a memory of their own."""
        super().__init__()
        self.encoder = encoder
        self.objectives = nn.ModuleDict()
        self._xlco = next((one for one in objectives if isinstance(one, CrossLingualContrast)), None)
        if self._xlco is not None and self._xlco.projection:
            self.objectives["xlco"] = XlcoHead(encoder)
        self._memory: MomentumContrast | None = None
        if any(isinstance(objective, DenoisingAlignment) for objective in objectives):
            self.objectives["dwa"] = Pointer(encoder)

    def forward(
        self, batch: PackedBatch, objective: AnyObjective, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum of the objective's losses over the batch (differentiable), and for metrics each loss with its language.

        The sum is to be divided by a denominator that the recipe fixes, never by the number of items here: a mean over
        any partition of the global batch is then the global mean.
        """
        states_TH = self.encoder(batch, last_layer=layer_read(objective), step=step, objective=objective.name)
        if isinstance(objective, CrossLingualContrast):
            return self._xlco_losses(states_TH, batch)
        if isinstance(objective, DenoisingAlignment):
            return self._dwa_losses(states_TH, batch, objective)
        return objective_losses(self.encoder, states_TH, batch, objective)

    @property
    def memory(self) -> MomentumContrast | None:
        """Momentum encoder and queue of the phase's xlco; made, from the weights of that moment, when first asked for."""
        if self._memory is None and self._xlco is not None:
            self._memory = MomentumContrast(self._weights(), self.encoder, self._xlco)
        return self._memory

    def after_step(self) -> None:
        """Let what follows the weights follow them; to be called after each optimiser step (collective)."""
        if self.memory is not None:
            self.memory.update(self._weights())

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name.removeprefix("encoder."): parameter for name, parameter in self.named_parameters()}

    def _xlco_losses(self, states_TH: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert self.memory is not None
        projection = self.get_parameter(PROJECTION) if "xlco" in self.objectives else None
        losses, languages = self.memory.losses(states_TH, batch, projection)
        return losses.sum(), losses.detach(), languages

    def _dwa_losses(
        self, states_TH: torch.Tensor, batch: PackedBatch, objective: DenoisingAlignment
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pointer = self.objectives["dwa"]
        assert isinstance(pointer, Pointer)
        losses, languages = denoising_losses(self.encoder, pointer, states_TH, batch, objective)
        return losses.sum(), losses.detach(), languages

    def states_after(self, batch: PackedBatch, layer: int) -> torch.Tensor:
        """[T, H]: states of `batch` after block `layer`, for what only looks at them (collective where the model is cut)."""
        return self.encoder(batch, last_layer=layer)


def layer_read(objective: AnyObjective) -> int | None:
    """The block whose states an objective reads; None: the final states."""
    return objective.layer if isinstance(objective, PairObjective) else None


def objective_losses(
    encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, objective: AnyObjective
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `PretrainingModel` returns, from the states that the objective reads; `encoder` has the head."""
    if isinstance(objective, Contrast):
        losses, languages = contrast_losses(states_TH, batch, objective)
        own = owned_pairs(losses, batch)
        return losses.sum(), losses.detach()[own], languages[own]
    losses, languages = masked_lm_losses(encoder, states_TH, batch)
    return losses.sum(), losses.detach(), languages
