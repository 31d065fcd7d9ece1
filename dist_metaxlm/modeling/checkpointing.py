"""Activation checkpointing: recomputes activations in the backward pass instead of keeping them.

`blocks` (arXiv 1604.06174) keeps only the input of every k-th block. `selective` recomputes activations that need much
memory and little work, as in arXiv 2205.05198. That paper recomputes the attention core, which is small here: attention
keeps no [L, L] scores. The largest activations are inside the feed-forward layer: 2 ffn elements per token and block (4 ffn
with a gate) of 8 hidden + 2 ffn in all. So these are recomputed, at the cost of one product (two with a gate).

Dropout masks follow from positions (modeling/dropout.py), so no generator state is saved, and gradients are bit-identical
to those without recomputation. `Block` and `Mlp` implement it, so it works in a single module and in a pipeline stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dist_metaxlm.recipe.schema import ParallelConfig


class Recomputed(nn.Module):
    """A module whose activations may be recomputed in the backward pass."""

    policy: Literal["selective", "blocks"]
    """The value of `parallel.recompute` that selects modules of this class."""
    index = 0
    """Number of the block, if the module is one."""
    recompute = False
    """Whether its activations are recomputed; set by `set_recompute`."""

    def maybe_again(self, function: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
        """`function(*inputs)`; with `recompute`, its intermediate results are not kept for the backward pass."""
        if not (self.recompute and torch.is_grad_enabled()):
            return function(*inputs)
        outputs: torch.Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return outputs


def set_recompute(model: nn.Module, layout: ParallelConfig) -> None:
    """Apply the recompute setting of `layout` to every block of `model` or a pipeline stage; may be called again."""
    for module in model.modules():
        if isinstance(module, Recomputed):
            module.recompute = layout.recompute == module.policy and module.index % layout.recompute_every == 0
