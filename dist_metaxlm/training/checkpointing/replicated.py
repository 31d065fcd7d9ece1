"""Further tensors that are equal on all ranks, such as a momentum encoder: each rank saves a share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch


class ReplicatedTensors:
    """This rank's part in saving `tensors`, which are equal on all ranks."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], rank: int, ranks: int) -> None:
        """Assign every tensor to one of the `ranks`, each to the rank with the least to write so far."""
        load = [0] * ranks
        self._own: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            writer = load.index(min(load))
            load[writer] += tensor.numel()
            if writer == rank:
                self._own[name] = tensor
        self.copies: dict[str, torch.Tensor] = {}
        """The result of `copy`, fp32 on the CPU."""
        self._kept = False

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Names, in order, and shapes of the tensors that this rank writes."""
        return {name: tensor.shape for name, tensor in self._own.items()}

    def keep_buffers(self) -> None:
        """Allocate the host memory for `copy`, page-locked for CUDA, so that no save has to."""
        self._kept = True
        for name, tensor in self._own.items():
            self.copies[name] = torch.empty(tensor.shape, pin_memory=torch.cuda.is_available()).zero_()

    def copy(self, stream: torch.cuda.Stream | None) -> None:
        """Copy this rank's share to the kept buffers, on a stream of its own; without kept buffers to new memory."""
        if not self._kept:
            self.copies = {name: tensor.to("cpu", torch.float32) for name, tensor in self._own.items()}
            return
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            for name, tensor in self._own.items():
                self.copies[name].copy_(tensor, non_blocking=True)
        if stream is not None:
            stream.synchronize()
