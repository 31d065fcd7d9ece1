"""The loss of a micro-step on its way into the backward pass."""

from __future__ import annotations

import torch

from dist_metaxlm import failpoints


def guard_loss(total: torch.Tensor, each: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same sum of losses and losses [n] of step `step` (from 0), whose gradient is not finite if the sum is not.

    All ranks skip an update whose gradient is not finite, so no rank needs to be told about a loss. The gradient of a
    finite loss is unchanged bit for bit: zero is added to it. Planted faults (`failpoints`) act here.
    """
    planted = failpoints.factor("loss", step + 1)
    if planted is not None:
        total, each = total * planted, each * planted
    if not total.requires_grad:
        return total, each
    zero = total.detach() * 0  # NaN if the loss is not finite
    scale = failpoints.factor("gradient", step + 1)
    total.register_hook(lambda gradient: gradient + zero if scale is None else gradient * scale + zero)
    return total, each
