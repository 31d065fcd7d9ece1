"""What one rank fails to save, all ranks fail to save, so that none waits for the others."""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from dist_metaxlm.errors import UserError
from dist_metaxlm.training.loop.guard_log import RollBack

logger = logging.getLogger(__name__)
_NOT_FINITE, _REFUSED, _OTHER_ERROR = 1 << 20, 1 << 21, 1 << 22
"""Codes of failures that are no error of the operating system, larger than any `errno`."""


class NotFinite(Exception):
    """A tensor must not be saved."""


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with infinity or NaN: its largest magnitude is either. One pass over it, without a copy.

    Raises:
        NotFinite: after a warning in the log, which names the tensor.
    """
    if tensor.numel() and not math.isfinite(float(torch.linalg.vector_norm(tensor, math.inf))):
        logger.warning("not saved: %s has values that are not finite", name)
        raise NotFinite


def together(action: Callable[[], None] | None, group: dist.ProcessGroup | None, target: Path) -> None:
    """Run `action` on this rank (collective over `group`); if it failed on one rank, all raise.

    Raises:
        OSError: with the largest error number of all ranks and the folder `target` that is being written.
        UserError: if one rank raises it.
        RollBack: if a tensor is not finite.
        RuntimeError: if another rank has an unexpected error; that rank raises its own.
    """
    number = 0
    own: Exception | None = None
    try:
        if action is not None:
            action()
    except OSError as error:
        number = error.errno or errno.EIO
    except NotFinite:
        number = _NOT_FINITE
    except UserError as error:
        number, own = _REFUSED, error
    except Exception as error:
        number, own = _OTHER_ERROR, error
    if group is not None:
        agreed = torch.tensor([number])
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=group)
        number = int(agreed)
    if own is not None:
        raise own
    if number == _REFUSED:
        raise UserError(f"{target} is not saved; rank 0 tells why")
    if number == _OTHER_ERROR:
        raise RuntimeError(f"another rank failed to save {target}")
    if number == _NOT_FINITE:
        step = int(target.name.removeprefix("step-"))
        raise RollBack(f"the weights or moments after step {step} have values that are not finite", step, [])
    if number:
        raise OSError(number, os.strerror(number), str(target))
