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
    """What a loss returns for a batch."""

    total: torch.Tensor
    """Scalar, differentiable: the sum of losses, which is divided by a denominator that the recipe fixes and never by the
    number of items here. A mean over any partition of the global batch is then the global mean."""
    each: torch.Tensor
    """[n], without gradient, for metrics: the losses of this rank's own items, each counted on one rank only."""
    languages: torch.Tensor
    """[n] int64: for each the index of its language, or language pair, in the data source's `names`."""


class Memory(Protocol):
    """What a loss keeps beside trained parameters: it follows the weights, and every rank holds the same of it."""

    before_change: Callable[[], None]
    """Called before anything of it changes: a checkpoint that is being written may still read it."""

    def update(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Follow the model's `weights`, by logical name, after an optimiser step (collective)."""

    def large(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold, where it lies: fp32 tensors that every rank has alike."""

    def small(self) -> dict[str, torch.Tensor]:
        """The rest of it, whose names begin with the objective's."""

    def restore(self, large: Mapping[str, torch.Tensor], small: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `large` and `small` returned."""


class ObjectiveLoss(ABC, Generic[Config]):
    """Computes the losses of one objective."""

    module: nn.Module | None = None
    """Its own trained parameters; the model has them as `objectives.NAME`."""

    def __init__(self, config: Config, encoder: Encoder) -> None:
        """Make `module`, where there is one, for `encoder`; initial values must follow from its seed and their names.

        Under `torch.device("meta")` only the shapes exist.
        """

    @abstractmethod
    def losses(self, encoder: Encoder, states_TH: torch.Tensor, batch: PackedBatch, config: Config) -> Losses:
        """Losses of a micro-batch from its states after block `config.last_layer` (None: the final states).

        In a pipeline `encoder` is its last stage: the head, a copy of the token embedding, and its own blocks.
        """

    def memory(self, weights: Mapping[str, torch.Tensor]) -> Memory | None:
        """Its memory, made at the first call from the model's `weights` by logical name; None where it keeps none."""
        return None
