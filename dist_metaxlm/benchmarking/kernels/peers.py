"""Third-party implementations that `metaxlm benchmark kernels` compares with ours.

Each is created at its first call. If its package is missing or does not run on this device, the caller reports it
(`why_not`) and continues with the others. Names and arguments are those of each project's public functions: Liger
(github.com/linkedin/Liger-Kernel, `liger_kernel.transformers`) and cut-cross-entropy (github.com/apple/ml-cross-entropy).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[..., Any]


def made_late(make: Callable[[], Call]) -> Call:
    """A function that calls the result of `make`, created at the first call; the creation may raise."""
    made: list[Call] = []

    def call(*tensors: torch.Tensor) -> object:
        if not made:
            made.append(make())
        return made[0](*tensors)

    return call


def why_not(error: Exception) -> str:
    """One line for a peer that raised: `not here: ...` if it is not installed, else the error."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    if isinstance(error, ImportError):
        return f"not here: {first}"
    return f"{type(error).__name__}: {first}"


def head_peers(targets: torch.Tensor) -> dict[str, Call]:
    """The sum of losses of states [M, H] against `targets` [M], with weight [V, H] and bias [V]."""

    def cut() -> Call:
        form = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        return lambda states, weight, bias: form(states, weight, targets, bias=bias, reduction="sum")

    def liger() -> Call:
        loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="sum")
        return lambda states, weight, bias: loss(weight, states, targets, bias)

    return {"cut-cross-entropy": made_late(cut), "Liger": made_late(liger)}


def liger_peers(case: str) -> dict[str, Call]:
    """Liger's function for the case of that name, if it has one; its GELU uses the tanh approximation."""
    calls: dict[str, tuple[str, str, tuple[float, ...]]] = {
        "LayerNorm": ("Liger", "liger_layer_norm", (1e-5,)),
        "RMSNorm": ("Liger", "liger_rms_norm", (1e-5,)),
        "GeGLU": ("Liger (tanh)", "liger_geglu", ()),
    }
    if case not in calls:
        return {}
    label, name, rest = calls[case]

    def make() -> Call:
        form = getattr(importlib.import_module("liger_kernel.transformers.functional"), name)
        return lambda *tensors: form(*tensors, *rest)

    return {label: made_late(make)}
