"""Token ids and positions to the first states of the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dist_metaxlm.kernels.pointwise.norm import embed_norm
from dist_metaxlm.modeling.batch_metadata import BatchMetadata
from dist_metaxlm.modeling.dropout import mask_at
from dist_metaxlm.modeling.layers import Norm, residual_norm, token_embedding
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard
from dist_metaxlm.recipe.schema import ModelConfig

POSITION_OFFSET = 2
"""XLM-R counts positions from 2: its padding id plus one."""
SITE = 0
"""Dropout site of the embedding."""


class TokenEmbedding(nn.Module):
    """The token embedding only, for the head on a pipeline's last stage."""

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
        # XLM-R's single token type: redundant with the positions, kept so that import and export leave weights unchanged.
        self.token_type = None if modern else nn.Parameter(torch.empty(1, config.hidden))
        normed = modern or config.norm == "post"
        self.norm = residual_norm(config, shard) if normed else nn.Identity()

    def forward(self, tokens: torch.Tensor, metadata: BatchMetadata) -> torch.Tensor:
        """[T] ids -> [T, H]; with sequence parallelism this rank's part of T."""
        table, positions = self._position_table(), None if self.positions is None else metadata.positions + POSITION_OFFSET
        mask = mask_at(metadata.dropout, SITE)
        if isinstance(self.tokens, nn.Embedding) and isinstance(self.norm, Norm):
            return embed_norm(
                tokens, self.tokens.weight, positions, table, *self.norm.affine(), self.norm.eps, mask, self.norm.rms
            )
        states = self.tokens(tokens)
        if positions is not None and table is not None:
            states = states + F.embedding(positions, table)
        if isinstance(self.norm, Norm):
            outputs: torch.Tensor = self.norm(states, mask=mask)
            return outputs
        return states if mask is None else mask.apply(states)

    def _position_table(self) -> torch.Tensor | None:
        """[P, H]; the token type is added to the small table rather than to every token."""
        if self.positions is None or self.token_type is None:
            return None
        table = self.positions.weight + self.token_type
        if not self.shard.sequence:
            return table
        from dist_metaxlm.modeling.tensor_layers import on_all_tokens

        return on_all_tokens(table, self.shard)
