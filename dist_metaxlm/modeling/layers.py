"""The layers that tensor parallelism shards, with the same parameter names whether sharded or not.

Without tensor parallelism they are torch's layers, which add the bias inside the product, and megatron-core is not imported.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dist_metaxlm.kernels.pointwise.activations import bias_gelu, wants_bias_apart
from dist_metaxlm.kernels.pointwise.dropout import DropoutMask
from dist_metaxlm.kernels.pointwise.norm import add_norm, norm
from dist_metaxlm.modeling.sharding import TensorShard
from dist_metaxlm.recipe.schema import ModelConfig


class Linear(nn.Linear):
    """`nn.Linear` that can leave the bias to the caller."""

    def forward(self, input: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        """[T, inputs] -> [T, outputs]."""
        return F.linear(input, self.weight, self.bias if with_bias else None)


def column_linear(inputs: int, outputs: int, bias: bool, shard: TensorShard) -> nn.Module:
    """[T, inputs] -> [T, outputs / size]: each rank has its rows of the matrix; with sequence parallelism it gathers T.

    With `with_bias=False` the product without bias.
    """
    if shard.size == 1:
        return Linear(inputs, outputs, bias=bias)
    from dist_metaxlm.modeling.tensor_layers import ColumnLinear

    return ColumnLinear(inputs, outputs, bias, shard)


def gelu_of(linear: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """GELU of a `Linear` or column-parallel layer, whose bias is added at the cheapest place."""
    bias = linear.bias
    if isinstance(bias, torch.Tensor) and wants_bias_apart(states):
        return bias_gelu(linear(states, with_bias=False), bias)
    return F.gelu(linear(states))


def row_linear(inputs: int, outputs: int, bias: bool, shard: TensorShard) -> nn.Module:
    """[T, inputs / size] -> [T, outputs], summed over the ranks; with sequence parallelism each keeps its part of T."""
    if shard.size == 1:
        return nn.Linear(inputs, outputs, bias=bias)
    from dist_metaxlm.modeling.tensor_layers import RowLinear

    return RowLinear(inputs, outputs, bias, shard)


def token_embedding(vocabulary: int, hidden: int, shard: TensorShard) -> nn.Module:
    """[T] ids -> [T, hidden], or this rank's part of T with sequence parallelism; each rank has its rows of the table."""
    if shard.size == 1:
        return nn.Embedding(vocabulary, hidden)
    from dist_metaxlm.modeling.tensor_layers import TokenEmbedding

    return TokenEmbedding(vocabulary, hidden, shard)


class Norm(nn.LayerNorm):
    """LayerNorm or RMSNorm of the residual stream, together with the adjacent dropout or residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden, config.norm_eps, bias=config.family != "modern")
        self.rms = config.norm_type == "rms"

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None, mask: DropoutMask | None = None) -> Any:
        """dropout(norm(input)) [T, H]; with `residual` the pair of sum = residual + dropout(input) and its norm."""
        weight, bias = self.affine()
        if residual is None:
            return norm(input, weight, bias, self.eps, mask, self.rms)
        return add_norm(input, residual, weight, bias, self.eps, mask, self.rms)

    def affine(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias, as the norm uses them."""
        return self.weight, self.bias


def residual_norm(config: ModelConfig, shard: TensorShard) -> Norm:
    """Norm over the channels of the residual stream, for the tokens that this rank holds."""
    if not shard.sequence:
        return Norm(config)
    from dist_metaxlm.modeling.tensor_layers import SequenceNorm

    return SequenceNorm(config, shard)
