"""One transformer block."""

from __future__ import annotations

import torch
from torch import nn

from dist_metaxlm.kernels.pointwise.norm import add
from dist_metaxlm.modeling.attention import Attention
from dist_metaxlm.modeling.batch_metadata import BatchMetadata
from dist_metaxlm.modeling.checkpointing import Recomputed
from dist_metaxlm.modeling.dropout import mask_at
from dist_metaxlm.modeling.layers import residual_norm
from dist_metaxlm.modeling.mlp import Mlp
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard
from dist_metaxlm.recipe.schema import ModelConfig


class Block(Recomputed):
    """Attention and feed-forward, each on a residual branch, with the norm after the sum (post) or before the branch.

    The first block of the modern family has no attention norm: the embedding's norm comes directly before it.
    """

    policy = "blocks"

    def __init__(self, config: ModelConfig, index: int, shard: TensorShard = WHOLE) -> None:
        super().__init__()
        self.index, self.post = index, config.norm == "post"
        self.sites = (2 * index + 1, 2 * index + 2)
        self.attention = Attention(config, index, shard)
        self.mlp = Mlp(config, shard)
        self.attention_norm: nn.Module = residual_norm(config, shard)
        if config.family == "modern" and index == 0:
            self.attention_norm = nn.Identity()
        self.mlp_norm = residual_norm(config, shard)

    def forward(self, states: torch.Tensor, metadata: BatchMetadata) -> torch.Tensor:
        """[T, H] -> [T, H]; with sequence parallelism T is this rank's part."""
        return self.maybe_again(self._forward, states, metadata)

    def _forward(self, states: torch.Tensor, metadata: BatchMetadata) -> torch.Tensor:
        at_attention, at_mlp = (mask_at(metadata.dropout, site) for site in self.sites)
        if self.post:
            _, states = self.attention_norm(self.attention(states, metadata), states, at_attention)
            outputs: torch.Tensor = self.mlp_norm(self.mlp(states), states, at_mlp)[1]
            return outputs
        branch = self.attention(self.attention_norm(states), metadata)
        states, normed = self.mlp_norm(branch, states, at_attention)
        return add(self.mlp(normed), states, at_mlp)
