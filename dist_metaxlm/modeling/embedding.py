"""Token ids and positions to the first states of the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dist_metaxlm.modeling.dropout import counter_dropout
from dist_metaxlm.modeling.geometry import Geometry
from dist_metaxlm.modeling.layers import layer_norm, token_embedding
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard
from dist_metaxlm.recipe.schema import ModelConfig

POSITION_OFFSET = 2
"""XLM-R counts positions from 2: its padding id plus one."""
SITE = 0
"""Dropout site of the embedding."""


class TokenEmbedding(nn.Module):
    """The token embedding alone: what the head of a pipeline's last stage needs of the embedding."""

    def __init__(self, config: ModelConfig, shard: TensorShard = WHOLE) -> None:
        super().__init__()
        self.tokens = token_embedding(config.vocab_size, config.hidden, shard)


class Embedding(nn.Module):
    """Tokens, for `xlmr` with learned positions; normed except in pre-norm `xlmr` (XLM-R XL has no norm here)."""

    def __init__(self, config: ModelConfig, shard: TensorShard = WHOLE) -> None:
        super().__init__()
        modern = config.family == "modern"
        self.shard = shard
        self.tokens = token_embedding(config.vocab_size, config.hidden, shard)
        self.positions = None if modern else nn.Embedding(config.max_positions + POSITION_OFFSET, config.hidden)
        # XLM-R's one token type: redundant beside the positions, kept so that weights come and go unchanged.
        self.token_type = None if modern else nn.Parameter(torch.empty(1, config.hidden))
        normed = modern or config.norm == "post"
        self.norm = layer_norm(config.hidden, config.norm_eps, not modern, shard) if normed else nn.Identity()

    def forward(self, tokens: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """[T] ids -> [T, H]; with sequence parallelism this rank's part of T."""
        states = self.tokens(tokens)
        if self.positions is not None and self.token_type is not None:
            # Added to the small table rather than to every token.
            table = self.positions.weight + self.token_type
            if self.shard.sequence:
                from dist_metaxlm.modeling.tensor_layers import on_all_tokens

                table = on_all_tokens(table, self.shard)
            states = states + F.embedding(geometry.positions + POSITION_OFFSET, table)
        return counter_dropout(self.norm(states), geometry.dropout, SITE)
