"""Attention kernels with the operator's launches, for `compile`: 12 heads, packed queries, keys and values."""

from __future__ import annotations

import torch

from dist_metaxlm.kernels.aot.compile import Case
from dist_metaxlm.kernels.attention.operator import launch, padded_width

_TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
_ARCHITECTURES = (80, 90, 100, 120)
_ATOMIC = (90, 100)
_TYPES = {torch.bfloat16: ("*bf16", 128), torch.float32: ("*fp32", 32)}
_KERNELS = {
    "forward": ("attention.triton_forward", "attention_forward_kernel"),
    "backward_keys": ("attention.triton_backward", "attention_backward_keys_kernel"),
    "backward_queries": ("attention.triton_backward", "attention_backward_queries_kernel"),
}


def _case(
    kernel: str, width: int, dtype: torch.dtype, architecture: int, atomic: bool = False, dropping: bool = False
) -> Case:
    """`kernel` for one head dimension and dtype, with the operator's launch on `architecture`."""
    matrix, rows = _TYPES[dtype]
    plan = launch(kernel, width, dtype, architecture, dropping, atomic)
    constants: dict[str, object] = {
        "TILE": rows,
        "WIDTH": width,
        "PADDED": padded_width(width),
        "ATOMIC": atomic,
        "DROP": dropping,
        "UPCAST": False,
        "ACC": "tl.float32",
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
    }
    module, function = _KERNELS[kernel]
    # Tiles of 32 rows in fp32 are too small for wgmma (64 rows) and tcgen05 (128 rows).
    expected = (_TENSOR_CORES[architecture] if dtype == torch.bfloat16 else "HMMA",)
    variant = f"attention {kernel}{' atomic' * atomic}{' dropout' * dropping}"
    return Case(
        f"{variant}, {width}, {matrix[1:]}, sm_{architecture}",
        f"dist_metaxlm.kernels.{module}:{function}",
        _signature(matrix, atomic),
        constants,
        [{"STEP": plan.step, "num_warps": plan.warps, "num_stages": plan.stages}],
        (*(part + kind for part in ("query", "key", "value") for kind in ("_stride", "_head")), "tokens"),
        {architecture: expected},
        (architecture,),
    )


def _signature(matrix: str, atomic: bool) -> dict[str, str | None]:
    matrices = ("queries", "keys", "values", "gradient", "mixed_out", "joined_out")
    numbers = [part + kind for part in ("query", "key", "value") for kind in ("_stride", "_head")] + ["tokens", "heads"]
    return {
        **dict.fromkeys(matrices, matrix),
        "query_grad": "*fp32" if atomic else matrix,
        **dict.fromkeys(("sums_out", "log_sums", "row_sums"), "*fp32"),
        **dict.fromkeys(("tiles", "bounds", "token_keys"), "*i32"),
        **dict.fromkeys((*numbers, "salt", "first_head", "threshold"), "i32"),
        "scale": "fp32",
        "factor": "fp32",
    }


_HALF, _FULL = torch.bfloat16, torch.float32
_DROPPING = ((64, _HALF), (128, _HALF), (64, _FULL))
CASES = [
    *[_case(kernel, width, _HALF, sm) for width in (32, 64, 128) for kernel in _KERNELS for sm in _ARCHITECTURES],
    *[_case("backward_keys", width, _HALF, sm, atomic=True) for width in (64, 128) for sm in _ATOMIC],
    *[_case(kernel, 64, _FULL, sm) for kernel in _KERNELS for sm in _ARCHITECTURES],
    # Not included: on sm_120 two registers of backward_keys with dropout spill at head dimension 128, whatever its launch.
    *[
        _case(kernel, width, dtype, sm, dropping=True)
        for width, dtype in _DROPPING
        for kernel in _KERNELS
        for sm in _ARCHITECTURES
        if (kernel, width, sm) != ("backward_keys", 128, 120)
    ],
    *[_case("backward_keys", width, _HALF, sm, atomic=True, dropping=True) for width in (64, 128) for sm in _ATOMIC],
]
