"""The machine that the recipe is written for: cores, memory, GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dist_metaxlm.planning.memory import estimate_memory
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.schema import ModelConfig

FLOPS_A_CORE = 20e9
"""Training FLOP/s of a CPU core: the quickstart's meta phase on two cores without AVX-512, 16.3 TFLOP in 387 s."""
ROOM = 0.8
"""Share of the memory that training may take."""
MICRO_BATCH_TOKENS = 2048
"""Tokens of a micro-batch for the estimate of memory: the smallest batch of `metaxlm init`."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the choices depend on."""

    cores: int
    """CPU cores that this process may use."""
    memory: int
    """Bytes of host memory."""
    gpu: str | None = None
    """Name of the first GPU."""
    gpu_memory: int = 0
    """Its bytes."""

    @property
    def flops(self) -> float | None:
        """Training FLOP/s without a GPU; None with one, whose speed nobody has measured."""
        return None if self.gpu else self.cores * FLOPS_A_CORE

    def too_small_for(self, model: ModelConfig) -> list[str]:
        """A sentence if weights, moments and a small micro-batch do not fit on one device."""
        precision = "bf16" if self.gpu else "fp32"
        needed = estimate_memory(model, Layout(), precision, MICRO_BATCH_TOKENS, 0.5).total
        room = self.gpu_memory if self.gpu else self.memory
        if needed <= ROOM * room:
            return []
        return [
            f"the model needs about {needed / 1e9:.1f} GB on one device and this machine has {room / 1e9:.1f} GB; choose a "
            "smaller --size, or several devices with `metaxlm plan`"
        ]


def this_machine() -> Machine:
    """The machine of this process."""
    import torch  # takes seconds, and only its view of the GPU is needed

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        return Machine(cores=cores, memory=memory)
    about = torch.cuda.get_device_properties(0)
    return Machine(cores=cores, memory=memory, gpu=str(about.name), gpu_memory=int(about.total_memory))
