"""Feed-forward layer: GELU, or GeGLU (arXiv 2002.05202) in the modern family."""

from __future__ import annotations

import torch

from dist_metaxlm.kernels.pointwise.activations import geglu
from dist_metaxlm.modeling.checkpointing import Recomputed
from dist_metaxlm.modeling.layers import column_linear, gelu_of, row_linear
from dist_metaxlm.modeling.sharding import WHOLE, TensorShard
from dist_metaxlm.recipe.schema import ModelConfig


class Mlp(Recomputed):
    """`down(gelu(up(x)))`, with a gate `down(gelu(up(x)) * gate(x))`; GELU is the exact one, by erf."""

    policy = "selective"

    def __init__(self, config: ModelConfig, shard: TensorShard = WHOLE) -> None:
        super().__init__()
        modern = config.family == "modern"
        self.up = column_linear(config.hidden, config.ffn, not modern, shard)
        # A separate layer, not the other half of `up`: a slice of rows then has the same meaning in both.
        self.gate = column_linear(config.hidden, config.ffn, False, shard) if modern else None
        self.down = row_linear(config.ffn, config.hidden, not modern, shard)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, H]."""
        return self.maybe_again(self._forward, states)

    def _forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = gelu_of(self.up, states) if self.gate is None else geglu(self.up(states), self.gate(states))
        outputs: torch.Tensor = self.down(inner)
        return outputs
