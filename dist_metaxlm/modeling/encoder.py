"""The encoder: embedding, blocks, head."""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.block import Block
from dist_metaxlm.modeling.embedding import Embedding
from dist_metaxlm.modeling.geometry import Geometry, batch_geometry
from dist_metaxlm.modeling.head import Head
from dist_metaxlm.modeling.initialisation import initialise
from dist_metaxlm.recipe.schema import ModelConfig


class Encoder(nn.Module):
    """A masked language model over packed batches; states are [T, H] from end to end, without padding.

    Runs in the dtype of its parameters; losses are fp32. The token embedding is the head's matrix too.
    """

    def __init__(self, config: ModelConfig, seed: int = 1) -> None:
        """Build and initialise from (`seed`, parameter name); under `torch.device("meta")` only the shapes exist."""
        super().__init__()
        self.config, self.seed = config, seed
        home = torch.get_default_device()
        with torch.device("meta"):  # the layers' own initialisation would be thrown away
            self.embedding = Embedding(config)
            self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
            self.final_norm: nn.Module = nn.Identity()
            if config.norm == "pre":
                self.final_norm = nn.LayerNorm(config.hidden, config.norm_eps, bias=config.family == "xlmr")
            self.head = Head(config)
        if home.type != "meta":
            self.to_empty(device=home)
            initialise(self, seed, config.init_std)

    def forward(self, batch: PackedBatch, last_layer: int | None = None, step: int = 0) -> torch.Tensor:
        """States [T, H] after all blocks and the final norm, or after block `last_layer` (from 1; 0: the embedding).

        With `last_layer` the blocks above are not run and the final norm is not applied: a pre-norm model gives its
        raw residual stream. `step` keys the dropout masks.
        """
        geometry = self.geometry(batch, step)
        states = self.embedding(batch.tokens, geometry)
        for block in islice(self.blocks, last_layer):
            states = block(states, geometry)
        return self.final_norm(states) if last_layer is None else states

    def hidden_states(self, batch: PackedBatch) -> list[torch.Tensor]:
        """layers + 1 tensors [T, H]; entry k is what `forward(batch, last_layer=k)` gives, the embedding is entry 0."""
        geometry = self.geometry(batch)
        states = [self.embedding(batch.tokens, geometry)]
        for block in self.blocks:
            states.append(block(states[-1], geometry))
        return states

    def masked_lm_loss(
        self, states: torch.Tensor, targets: torch.Tensor, target_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Negative log likelihoods [M] fp32 of `target_tokens` [M] at the rows `targets` [M] of `states` [T, H]."""
        return self.head(states.index_select(0, targets), self.embedding.tokens.weight, target_tokens)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, V]."""
        return self.head(states, self.embedding.tokens.weight)

    def geometry(self, batch: PackedBatch, step: int = 0) -> Geometry:
        """What the blocks need to know of `batch`; drops nothing in evaluation mode."""
        return batch_geometry(batch, self.config, self.embedding.tokens.weight.dtype, self.training, self.seed, step)
