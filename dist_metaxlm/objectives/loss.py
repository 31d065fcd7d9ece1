"""The loss of a training objective: packed batch and hidden states -> sum of losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import Objective

Config = TypeVar("Config", bound=Objective)


class Losses(NamedTuple):
    """Result of a loss for a batch."""

    total: torch.Tensor
    """Scalar, differentiable: the sum of losses. It is divided by a denominator fixed by the recipe, never by the number of
    items here, so the mean over any partition of the global batch is the global mean."""
    each: torch.Tensor
    """[n], without gradient, for metrics: the losses of this rank's own items, each counted on only one rank."""
    languages: torch.Tensor
    """[n] int64: index of each item's language or language pair in the data source's `names`."""


class Memory(Protocol):
    """State of a loss besides trained parameters: it follows the weights and is equal on every rank."""

    before_change: Callable[[], None]
    """Called before the memory changes: a checkpoint that is being written may still read it."""

    def update(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Follow the model's `weights`, by logical name, after an optimiser step (collective)."""

    def large(self) -> dict[str, torch.Tensor]:
        """Tensors for a checkpoint, without copying: fp32, equal on every rank."""

    def small(self) -> dict[str, torch.Tensor]:
        """The remaining state; names begin with the objective's."""

    def restore(self, large: Mapping[str, torch.Tensor], small: Mapping[str, torch.Tensor]) -> None:
        """Restore the results of `large` and `small`."""


class ObjectiveLoss(ABC, Generic[Config]):
    """Computes the losses of one objective."""

    module: nn.Module | None = None
    """Its own trained parameters; the model has them as `objectives.NAME`."""

    def __init__(self, config: Config, encoder: Encoder) -> None:
        """Create `module`, if there is one, for `encoder`; initial values must depend only on its seed and their names.

        Under `torch.device("meta")` only the shapes exist.
        """

    @abstractmethod
    def losses(self, encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, config: Config) -> Losses:
        """Losses of a micro-batch from its states after block `config.last_layer` (None: the final states).

        In a pipeline `encoder` is its last stage: the head, a copy of the token embedding, and its own blocks.
        """

    def memory(self, weights: Mapping[str, torch.Tensor]) -> Memory | None:
        """Its memory, created at the first call from the model's `weights` by logical name; None if it has none."""
        return None
