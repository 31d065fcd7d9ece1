"""Imports DeepSpeed (0.19.8) without three steps of its start: two are unused by every phase, one can fail.

* On a CPU, DeepSpeed compiles a shared-memory all-reduce that only inference uses. The first start takes a minute of C++
  compilation, and every later start checks whether the build is up to date.
* ZeRO checks whether the optimiser is Muon. Importing Muon applies torch.compile to its functions, which imports Inductor.
* ZeRO queries NVML for a device's free memory by the numbers in CUDA_VISIBLE_DEVICES. These may be UUIDs (slices of a MIG
  device have no number). Without NVML it queries torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch


def import_deepspeed() -> ModuleType:
    """Import and return the package without building or compiling unused parts."""
    deepspeed = importlib.import_module("deepspeed")
    with contextlib.suppress(ImportError):  # other versions may have neither
        # Not `deepspeed.comm.torch`: that name is PyTorch, which the package imports into itself.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
        _import_muon()
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
        if torch.cuda.is_available() and not all(name.strip().isdecimal() for name in names):
            importlib.import_module("deepspeed.accelerator.cuda_accelerator").pynvml = None  # type: ignore[attr-defined]
    return deepspeed


def _import_muon() -> None:
    """Import Muon's functions uncompiled; this project does not call them."""
    with without_compiling():
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401


@contextlib.contextmanager
def without_compiling() -> Iterator[None]:
    """Inside, torch.compile returns the function it is given: as a decorator it imports Inductor, which takes seconds."""
    compiling = torch.compile

    def plain(model: Any = None, **_: object) -> Any:
        return model if model is not None else lambda function: function

    torch.compile = plain
    try:
        yield
    finally:
        torch.compile = compiling
