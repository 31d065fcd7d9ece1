"""megatron-core's tensor-parallel layers for packed states [T, H], and the collectives of sequence parallelism.

Source: Megatron-LM (arXiv 1909.08053) and its sequence parallelism (arXiv 2205.05198).

Under sequence parallelism a replicated parameter is applied only to this rank's tokens, so its gradient is a partial sum.
megatron-core adds the parts in `finalize_model_grads`, before its own optimiser; DeepSpeed reduces gradients in
the backward pass already (ZeRO-2 and 3 keep only their shard of them), so here each such parameter goes through
`on_all_tokens`, whose backward sums over the tensor ranks: correct in every ZeRO stage, at one small all-reduce per
parameter.
"""

from __future__ import annotations

import torch
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel import mappings
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from torch import nn

from dist_metaxlm.modeling.layers import Norm
from dist_metaxlm.modeling.sharding import TensorShard
from dist_metaxlm.recipe.schema import ModelConfig


def _config(shard: TensorShard) -> ModelParallelConfig:
    """Values come from modeling/initialisation.py; megatron-core only allocates them."""
    return ModelParallelConfig(
        tensor_model_parallel_size=shard.size,
        sequence_parallel=shard.sequence,
        use_cpu_initialization=True,
        perform_initialization=False,
    )


def on_all_tokens(parameter: torch.Tensor, shard: TensorShard) -> torch.Tensor:
    """`parameter` unchanged; under sequence parallelism its gradient is summed over the tensor ranks."""
    if not shard.sequence:
        return parameter
    outputs: torch.Tensor = mappings.copy_to_tensor_model_parallel_region(parameter, group=shard.group)
    return outputs


def all_tokens(states: torch.Tensor, shard: TensorShard) -> torch.Tensor:
    """[T / size, H] of every rank -> [T, H] on all, for computations that every rank repeats."""
    outputs: torch.Tensor = mappings.gather_from_sequence_parallel_region(
        states, tensor_parallel_output_grad=False, group=shard.group
    )
    return outputs


class ColumnLinear(ColumnParallelLinear):
    """`nn.Linear` with a slice of the rows on each rank."""

    def __init__(self, inputs: int, outputs: int, bias: bool, shard: TensorShard) -> None:
        super().__init__(inputs, outputs, config=_config(shard), init_method=nn.init.zeros_, bias=bias, tp_group=shard.group)

    def forward(self, states: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        """[T, inputs] (with sequence parallelism [T / size, inputs]) -> [T, outputs / size]."""
        self.skip_bias_add = not with_bias
        outputs: torch.Tensor = super().forward(states)[0]
        return outputs

    get_extra_state = nn.Module.get_extra_state  # Transformer Engine's; here it would be an empty entry per layer


class RowLinear(RowParallelLinear):
    """`nn.Linear` with a slice of the columns and the whole bias on each rank."""

    def __init__(self, inputs: int, outputs: int, bias: bool, shard: TensorShard) -> None:
        super().__init__(
            inputs,
            outputs,
            config=_config(shard),
            init_method=nn.init.zeros_,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=shard.group,
        )
        self._shard = shard

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[T, inputs / size] -> [T, outputs] (with sequence parallelism [T / size, outputs])."""
        summed, bias = super().forward(states)
        outputs: torch.Tensor = summed if bias is None else summed + on_all_tokens(bias, self._shard)
        return outputs

    get_extra_state = nn.Module.get_extra_state


class TokenEmbedding(VocabParallelEmbedding):
    """`nn.Embedding` with a slice of the rows on each rank, padded to equal slices."""

    def __init__(self, vocabulary: int, hidden: int, shard: TensorShard) -> None:
        super().__init__(
            shard.padded(vocabulary),
            hidden,
            init_method=nn.init.zeros_,
            config=_config(shard),
            reduce_scatter_embeddings=shard.sequence,
            tp_group=shard.group,
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T] -> [T, hidden] (with sequence parallelism [T / size, hidden])."""
        if not self.reduce_scatter_embeddings:
            states: torch.Tensor = super().forward(tokens)
            return states
        # megatron-core scatters [batch, sequence] along the sequence.
        scattered: torch.Tensor = super().forward(tokens.unsqueeze(0)).squeeze(1)
        return scattered


class SequenceNorm(Norm):
    """Norm of this rank's tokens."""

    def __init__(self, config: ModelConfig, shard: TensorShard) -> None:
        super().__init__(config)
        self._shard = shard

    def affine(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias, whose gradients are summed over the tensor ranks."""
        bias = None if self.bias is None else on_all_tokens(self.bias, self._shard)
        return on_all_tokens(self.weight, self._shard), bias
