"""The encoder: embedding, blocks, head."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import torch
from torch import nn

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.modeling.block import Block
from dist_metaxlm.modeling.embedding import Embedding
from dist_metaxlm.modeling.geometry import Geometry, batch_geometry
from dist_metaxlm.modeling.head import Head
from dist_metaxlm.modeling.initialisation import initialise
from dist_metaxlm.modeling.layers import layer_norm
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard, mark, own_part
from dist_metaxlm.recipe.schema import ModelConfig


class Encoder(nn.Module):
    """A masked language model over packed batches; states are [T, H] from end to end, without padding.

    Runs in the dtype of its parameters; losses are fp32. The token embedding is the head's matrix too.
    """

    def __init__(self, config: ModelConfig, seed: int = 1, shard: TensorShard = WHOLE) -> None:
        """Build `shard` of the model and initialise it from (`seed`, parameter name).

        Under `torch.device("meta")` only the shapes exist.
        """
        super().__init__()
        self.config, self.seed, self.shard = config, seed, shard
        home = torch.get_default_device()
        with torch.device("meta"):  # the layers' own initialisation would be thrown away
            self.embedding = Embedding(config, shard)
            self.blocks = nn.ModuleList(Block(config, index, shard) for index in range(config.layers))
            self.final_norm: nn.Module = nn.Identity()
            if config.norm == "pre":
                self.final_norm = layer_norm(config.hidden, config.norm_eps, config.family == "xlmr", shard)
            self.head = Head(config, shard)
        if home.type != "meta":
            self.to_empty(device=home)
            initialise(self, seed, config.init_std, shard, config.vocab_size)
        mark(self, shard)

    def forward(self, batch: PackedBatch, last_layer: int | None = None, step: int = 0) -> torch.Tensor:
        """States [T, H] after all blocks and the final norm, or after block `last_layer` (from 1; 0: the embedding).

        With `last_layer` the blocks above are not run and the final norm is not applied: a pre-norm model gives its
        raw residual stream. `step` keys the dropout masks.
        """
        geometry = self.geometry(batch, step)
        states = self.embedding(batch.tokens, geometry)
        for block in islice(self.blocks, last_layer):
            states = block(states, geometry)
        return self._all_tokens(self.final_norm(states) if last_layer is None else states)

    def hidden_states(self, batch: PackedBatch) -> list[torch.Tensor]:
        """layers + 1 tensors [T, H]; entry k is what `forward(batch, last_layer=k)` gives, the embedding is entry 0."""
        geometry = self.geometry(batch)
        states = [self.embedding(batch.tokens, geometry)]
        for block in self.blocks:
            states.append(block(states[-1], geometry))
        return [self._all_tokens(state) for state in states]

    def _all_tokens(self, states: torch.Tensor) -> torch.Tensor:
        if not self.shard.sequence:
            return states
        from dist_metaxlm.modeling.tensor_layers import all_tokens

        return all_tokens(states, self.shard)

    @torch.no_grad()
    def load_logical(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take this rank's part of every parameter from whole tensors by logical name, as a checkpoint holds them."""
        for name, parameter in self.named_parameters():
            parameter.copy_(own_part(name, weights[name], self.shard))

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
        dtype = self.head.bias.dtype
        return batch_geometry(batch, self.config, dtype, self.training, self.seed, step, self.shard)
