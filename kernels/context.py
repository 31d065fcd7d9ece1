"""The type of the `ctx` of a `torch.autograd.Function`; torch has no annotations for it. For the type checker only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.function import FunctionCtx


class Context(FunctionCtx):
    """What torch sets itself. A function that keeps more has a subclass which names it."""

    saved_tensors: tuple[torch.Tensor, ...]
    """Those of `save_for_backward`; a None that was saved is a None here."""
    needs_input_grad: tuple[bool, ...]
    """One per argument of `forward`."""
    if TYPE_CHECKING:

        def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
            """Keep `tensors` for the backward."""
