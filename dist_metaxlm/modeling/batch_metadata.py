"""Inputs of every block for a micro-batch besides its states; built once per micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.kernels.attention.dispatch import AttentionPattern, attention_pattern
from dist_metaxlm.kernels.pointwise.dropout import token_keys
from dist_metaxlm.modeling.dropout import AttentionDropoutKey, DropoutKey
from dist_metaxlm.modeling.rotary import RotaryTable, rotary_table
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard
from dist_metaxlm.recipe.schema import ModelConfig


@dataclass(frozen=True)
class BatchMetadata:
    """Attention patterns, positions and dropout key of T tokens; the local fields are None for family `xlmr`."""

    positions: torch.Tensor
    """[T] int64: position inside the document, from 0; with sequence parallelism of this rank's tokens only."""
    attention: AttentionPattern
    """Pattern of the layers that attend over the whole document."""
    local_attention: AttentionPattern | None
    """Pattern of the layers that attend over `local_window` tokens."""
    rotary: RotaryTable | None
    """Rotation of queries and keys in the global layers."""
    local_rotary: RotaryTable | None
    """Rotation of queries and keys in the local layers."""
    dropout: DropoutKey | None
    """Key of the dropout masks of the tokens of `positions`; None: nothing is dropped."""
    attention_dropout: AttentionDropoutKey | None
    """Key of the dropout masks of attention weights; None: nothing is dropped."""


def metadata_of_batch(
    batch: PackedBatch,
    config: ModelConfig,
    dtype: torch.dtype,
    training: bool,
    seed: int,
    step: int,
    shard: TensorShard = WHOLE,
    objective: str = "",
    causal: bool = False,
) -> BatchMetadata:
    """The metadata of `batch` for a model in `dtype`.

    `seed`, `step` and `objective` (its name) key the dropout masks and have no other effect. With `causal` a token
    attends only to those up to itself.
    """
    modern = config.family == "modern"
    ids, width = batch.document_ids, config.hidden // config.heads
    dropout, attention_dropout, own = None, None, shard.tokens(batch.positions.numel())
    if training and config.dropout > 0:
        dropout = DropoutKey(batch.token_numbers[own], config.dropout, seed, step, objective)
    if training and config.attention_dropout > 0:
        numbers = token_keys(batch.token_numbers)
        attention_dropout = AttentionDropoutKey(numbers, config.attention_dropout, seed, step, objective)
    return BatchMetadata(
        positions=batch.positions[own],
        attention=attention_pattern(ids, batch.cu_seqlens, batch.window, None, dtype, causal),
        local_attention=(
            attention_pattern(ids, batch.cu_seqlens, batch.window, config.local_window, dtype, causal) if modern else None
        ),
        rotary=rotary_table(batch.positions, width, config.rope_theta, dtype) if modern else None,
        local_rotary=rotary_table(batch.positions, width, config.rope_theta_local, dtype) if modern else None,
        dropout=dropout,
        attention_dropout=attention_dropout,
    )
