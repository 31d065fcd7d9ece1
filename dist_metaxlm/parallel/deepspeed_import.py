"""DeepSpeed (0.19.8) without two things that it prepares at start and no phase uses, and one that fails.

* On a CPU its communication compiles an all-reduce in shared memory, for inference alone: a minute of a C++ compiler at the
  first start of all, in whatever environment, and a look whether that is still up to date at every other.
* ZeRO asks whether the optimiser is Muon, and importing Muon hands its functions to torch.compile, which imports Inductor.
* ZeRO asks NVML for a device's free memory by the numbers in CUDA_VISIBLE_DEVICES, where there may be none (a slice of a MIG
  device has but a UUID); without NVML it asks torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from types import ModuleType
from typing import Any

import torch


def import_deepspeed() -> ModuleType:
    """The package, imported; nothing is built or compiled for what is not used."""
    import deepspeed

    with contextlib.suppress(ImportError):  # a version that has neither has nothing to be spared
        # Not `deepspeed.comm.torch`: that name is PyTorch, which the package imports into itself.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
        _import_muon()
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
        if torch.cuda.is_available() and not all(name.strip().isdecimal() for name in names):
            importlib.import_module("deepspeed.accelerator.cuda_accelerator").pynvml = None  # type: ignore[attr-defined]
    return deepspeed


def _import_muon() -> None:
    """Muon's functions as they are written, which nobody calls."""
    compiling = torch.compile

    def plain(model: Any = None, **_: Any) -> Any:
        return model if model is not None else lambda function: function

    torch.compile = plain
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compiling
