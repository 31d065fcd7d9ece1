"""Megatron-core on a machine without CUDA: its buffers ask CUDA for a device, and get the CPU."""

from __future__ import annotations

import torch


def patch_current_device(device: torch.device) -> None:
    """Let megatron-core's `torch.cuda.current_device()` name the CPU, where that is what the ranks compute on.

    Its sequence-parallel layers and communication buffers allocate there, whatever device their input is on.
    """
    if device.type == "cpu":
        torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
