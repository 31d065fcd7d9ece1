"""The module that the engine wraps: an encoder whose forward pass computes one objective's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.loss import Memory, ObjectiveLoss
from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.schema import Objective

OWN = "objectives."
"""Prefix of the names of parameters that belong to an objective, not to the encoder."""


class PretrainingModel(nn.Module):
    """Encoder plus objectives behind one `forward`, so that gradient hooks and ZeRO see a single module."""

    def __init__(self, encoder: Encoder, objectives: Sequence[Objective] = ()) -> None:
        """`objectives`: those of the phase; some have their own parameters or memory."""
        super().__init__()
        self.encoder = encoder
        self.objectives = nn.ModuleDict()
        self._losses = {objective.name: make_loss(objective, encoder) for objective in objectives}
        for name, loss in self._losses.items():
            if loss.module is not None:
                self.objectives[name] = loss.module
        self._remembering = next((self._losses[objective.name] for objective in objectives if objective.keeps_memory), None)
        self._memory: Memory | None = None

    def forward(
        self, batch: PackedBatch, objective: Objective, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum of the objective's losses over the batch, and each loss with its language for metrics; see `Losses`."""
        _ = self.memory  # create it now, from these weights, if it does not exist yet
        states_TH = self.encoder(batch, objective.last_layer, step, objective.name, objective.causal)
        loss = self._losses.get(objective.name) or make_parameter_free_loss(objective, self.encoder)
        total, each, languages = loss.losses(self.encoder, states_TH, batch, objective)
        return total, each, languages

    @property
    def memory(self) -> Memory | None:
        """Memory of the one objective that has one; created from the current weights on first access."""
        if self._memory is None and self._remembering is not None:
            self._memory = self._remembering.memory(self._weights())
        return self._memory

    def after_step(self) -> None:
        """Update the memory from the weights; call it after each optimiser step (collective)."""
        if self.memory is not None:
            self.memory.update(self._weights())

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name.removeprefix("encoder."): parameter for name, parameter in self.named_parameters()}

    def states_after(self, batch: PackedBatch, layer: int | None) -> torch.Tensor:
        """[T, H]: states of `batch` after block `layer` (None: the final states), for inspection only.

        Collective for a sharded model.
        """
        outputs: torch.Tensor = self.encoder(batch, last_layer=layer)
        return outputs


def make_loss(objective: Objective, encoder: Encoder) -> ObjectiveLoss[Any]:
    """The loss of an objective, with its own parameters if it has any."""
    loss = registry.entry(objective.name).load_loss()(objective, encoder)
    assert isinstance(loss, ObjectiveLoss), f"the loss of objective {objective.name} is not an ObjectiveLoss"
    return loss


def make_parameter_free_loss(objective: Objective, encoder: Encoder) -> ObjectiveLoss[Any]:
    """The loss of an objective on an encoder that was built without it, such as a pipeline's last stage."""
    assert not objective.needs_whole_model, f"objective {objective.name} needs a model that was built with it"
    return make_loss(objective, encoder)
