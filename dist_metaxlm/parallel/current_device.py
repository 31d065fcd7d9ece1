"""Lets megatron-core run without CUDA: its buffers request the current CUDA device and get the CPU."""

from __future__ import annotations

import torch


def patch_current_device(device: torch.device) -> None:
    """Make `torch.cuda.current_device()` return the CPU if the ranks compute on it.

    megatron-core's sequence-parallel layers and communication buffers allocate on that device, not on their input's.
    """
    if device.type == "cpu":
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
