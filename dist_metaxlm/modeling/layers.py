"""The layers that tensor parallelism cuts, under the same parameter names whether they are cut or not.

Without tensor parallelism they are torch's own, which add the bias inside the product, and megatron-core is not imported.
"""

from __future__ import annotations

from torch import nn

from dist_metaxlm.modeling.sharding import TensorShard


def column_linear(inputs: int, outputs: int, bias: bool, shard: TensorShard) -> nn.Module:
    """[T, inputs] -> [T, outputs / size]: each rank has its rows of the matrix; with sequence parallelism it gathers T."""
    if shard.size == 1:
        return nn.Linear(inputs, outputs, bias=bias)
    from dist_metaxlm.modeling.tensor_layers import ColumnLinear

    return ColumnLinear(inputs, outputs, bias, shard)


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


def layer_norm(width: int, eps: float, bias: bool, shard: TensorShard) -> nn.LayerNorm:
    """LayerNorm over the channels of the residual stream, of whichever tokens this rank holds."""
    if not shard.sequence:
        return nn.LayerNorm(width, eps, bias=bias)
    from dist_metaxlm.modeling.tensor_layers import SequenceNorm

    return SequenceNorm(width, eps, bias, shard)
