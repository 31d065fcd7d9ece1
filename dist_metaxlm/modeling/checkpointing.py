"""Activation checkpointing: what the backward pass needs is computed a second time instead of being kept.

`blocks` (arXiv 1604.06174) keeps the input of every k-th block and none of its insides. `selective` chooses what costs much
memory and little work, as arXiv 2205.05198 does; but what is chosen there, the attention core, is small here: attention
keeps no [L, L] scores. Largest is the inside of the feed-forward layer, 2 ffn elements a token and block (4 ffn with a
gate) of 8 hidden + 2 ffn in all, so that is what is computed again, at the price of one product (two with a gate).

Dropout masks follow from positions (modeling/dropout.py), so no generator state is saved, and gradients are bit for bit
those without. It sits inside `Block` and `Mlp`: whatever runs blocks, one module or a pipeline stage, has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dist_metaxlm.recipe.schema import ParallelConfig


class Recomputed(nn.Module):
    """A module whose insides may be computed again in the backward pass."""

    policy: Literal["selective", "blocks"]
    """The value of `parallel.recompute` that means modules of this class."""
    index = 0
    """Number of the block, where the module is one."""
    recompute = False
    """Whether its insides are computed again; `set_recompute` decides."""

    def maybe_again(self, function: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
        """`function(*inputs)`; where `recompute` is set, its intermediate results are not kept for the backward pass."""
        if not (self.recompute and torch.is_grad_enabled()):
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def set_recompute(model: nn.Module, layout: ParallelConfig) -> None:
    """Set on every block of `model` (or of a pipeline stage) what `layout` asks for; may be called again."""
    for module in model.modules():
        if isinstance(module, Recomputed):
            module.recompute = layout.recompute == module.policy and module.index % layout.recompute_every == 0
