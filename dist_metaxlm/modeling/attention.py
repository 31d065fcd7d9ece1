"""Self-attention over the documents of a pack."""

from __future__ import annotations

import torch
from torch import nn

from dist_metaxlm.kernels.attention.dispatch import packed_attention
from dist_metaxlm.kernels.attention.parts import parts_of
from dist_metaxlm.modeling.batch_metadata import BatchMetadata
from dist_metaxlm.modeling.dropout import attention_mask_at
from dist_metaxlm.modeling.layers import column_linear, row_linear
from dist_metaxlm.modeling.rotary import rotate
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard
from dist_metaxlm.recipe.schema import ModelConfig


def is_local(config: ModelConfig, index: int) -> bool:
    """Whether block `index` (from 0) attends over `local_window` tokens only."""
    return config.family == "modern" and index % config.global_every != 0


class Attention(nn.Module):
    """Queries, keys and values in one product, attention, output product.

    The rows of `qkv` are ordered [heads, 3, D], so a contiguous slice of them is a set of whole heads.
    """

    def __init__(self, config: ModelConfig, index: int, shard: TensorShard = WHOLE) -> None:
        super().__init__()
        biased = config.family == "xlmr"
        self.width = config.hidden // config.heads
        self.index, self.local = index, is_local(config, index)
        self.first_head = shard.rank * (config.heads // shard.size)
        self.qkv = column_linear(config.hidden, 3 * config.hidden, biased, shard)
        self.out = row_linear(config.hidden, config.hidden, biased, shard)

    def forward(self, states: torch.Tensor, metadata: BatchMetadata) -> torch.Tensor:
        """[T, H] -> [T, H]; with sequence parallelism this rank's part of T on both sides, all of it in between."""
        pattern = metadata.local_attention if self.local else metadata.attention
        rotary = metadata.local_rotary if self.local else metadata.rotary
        assert pattern is not None
        mixed = self.qkv(states)
        queries, keys, values = parts_of(mixed.view(mixed.shape[0], -1, 3, self.width))
        if rotary is not None:
            queries, keys = rotate(queries, rotary), rotate(keys, rotary)
        dropout = attention_mask_at(metadata.attention_dropout, self.index, self.first_head)
        outputs: torch.Tensor = self.out(packed_attention(queries, keys, values, pattern, dropout).flatten(1))
        return outputs
