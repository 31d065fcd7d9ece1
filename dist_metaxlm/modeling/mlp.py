"""Feed-forward layer: GELU, or GeGLU (arXiv 2002.05202) in the modern family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dist_metaxlm.recipe.schema import ModelConfig


class Mlp(nn.Module):
    """`down(gelu(up(x)))`, with a gate `down(gelu(up(x)) * gate(x))`; GELU is the exact one, by erf."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        modern = config.family == "modern"
        self.up = nn.Linear(config.hidden, config.ffn, bias=not modern)
        # A layer of its own and not the other half of `up`: a slice of rows then means the same in both.
        self.gate = nn.Linear(config.hidden, config.ffn, bias=False) if modern else None
        self.down = nn.Linear(config.ffn, config.hidden, bias=not modern)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, H]."""
        inner = F.gelu(self.up(states))
        if self.gate is not None:
            inner = inner * self.gate(states)
        return self.down(inner)
