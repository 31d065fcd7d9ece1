"""Masked-LM head: transform, then the projection onto the tied token embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dist_metaxlm.kernels.head.linear_cross_entropy import VocabularyShard, linear_cross_entropy
from dist_metaxlm.modeling.layers import Linear, Norm, gelu_of
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard
from dist_metaxlm.recipe.schema import ModelConfig


class Head(nn.Module):
    """Dense, GELU, norm; then a bias over the vocabulary on top of the embedding matrix, which the caller passes in.

    Under tensor parallelism each rank has its part of the embedding and of the bias, and the whole transform. It is small:
    a hidden x hidden matrix for few rows (the targets).
    """

    def __init__(self, config: ModelConfig, shard: TensorShard = WHOLE) -> None:
        super().__init__()
        self.dense = Linear(config.hidden, config.hidden, bias=config.family != "modern")
        self.norm = Norm(config)
        self.bias = nn.Parameter(torch.empty(shard.padded(config.vocab_size) // shard.size))
        self.shard: VocabularyShard | None = None
        if shard.size > 1:
            own = shard.own_vocabulary(config.vocab_size)
            self.shard = VocabularyShard(own.start, len(own), shard.group)

    def forward(self, states: torch.Tensor, embedding: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [N, V] of `states` [N, H] under `embedding` [V, H]; with ids `targets` [N] instead their negative
        log likelihoods [N] fp32, and no logits are kept. V is this rank's part of the vocabulary: logits are
        not gathered over tensor ranks, because evaluation runs on whole models.
        """
        states = self.transform(states)
        if targets is None:
            return F.linear(states, embedding, self.bias)
        return linear_cross_entropy(states, embedding, self.bias, targets, shard=self.shard)

    def transform(self, states: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H], ready for the projection."""
        outputs: torch.Tensor = self.norm(gelu_of(self.dense, states))
        return outputs
