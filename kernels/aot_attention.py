"""The attention kernels as the operator launches them, for kernels/aot.py: 12 heads, packed queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
from dist_metaxlm.kernels.aot import Case
from dist_metaxlm.kernels.attention_operator import launch, padded_width

_TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
_SAME_LAUNCH = ((80,), (90, 100))
_TYPES = {torch.bfloat16: ("*bf16", 128), torch.float32: ("*fp32", 32)}
_KERNELS = {
    "forward": ("attention_triton", "attention_forward_kernel"),
    "backward_keys": ("attention_triton_backward", "attention_backward_keys_kernel"),
    "backward_queries": ("attention_triton_backward", "attention_backward_queries_kernel"),
}


def _case(kernel: str, width: int, dtype: torch.dtype, architectures: tuple[int, ...], atomic: bool = False,
          dropping: bool = False) -> Case:
    """`kernel` for one head dimension and dtype, with the launch the operator takes on `architectures`."""
    matrix, rows = _TYPES[dtype]
    plan = launch(kernel, width, dtype, architectures[0], dropping, atomic)
    constants: dict[str, Any] = {"TILE": rows, "WIDTH": width, "PADDED": padded_width(width), "ATOMIC": atomic,
                                 "DROP": dropping,
                                 "UPCAST": False, "ACC": "tl.float32",
                                 "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee"}
    module, function = _KERNELS[kernel]
    # Tiles of 32 rows in fp32 are too small for wgmma (64 rows) and tcgen05 (128 rows).
    expected = {sm: (_TENSOR_CORES[sm] if dtype == torch.bfloat16 else "HMMA",) for sm in architectures}
    variant = f"attention {kernel}{' atomic' * atomic}{' dropout' * dropping}"
    name = ", ".join([variant, str(width), matrix[1:]] + ["sm_80"] * (80 in architectures))
    return Case(name, f"dist_metaxlm.kernels.{module}:{function}", _signature(matrix, atomic), constants,
                [{"STEP": plan.step, "num_warps": plan.warps, "num_stages": plan.stages}],
                (*(part + kind for part in ("query", "key", "value") for kind in ("_stride", "_head")), "tokens"),
                expected, architectures)


def _signature(matrix: str, atomic: bool) -> dict[str, str | None]:
    matrices = ("queries", "keys", "values", "gradient", "mixed_out", "query_grad_out", "key_grad_out", "value_grad_out")
    numbers = [part + kind for part in ("query", "key", "value") for kind in ("_stride", "_head")] + ["tokens", "heads"]
    return {**dict.fromkeys(matrices, matrix), "query_grad": "*fp32" if atomic else matrix,
            **dict.fromkeys(("sums_out", "log_sums", "row_sums"), "*fp32"),
            **dict.fromkeys(("tiles", "bounds", "token_keys"), "*i32"),
            **dict.fromkeys((*numbers, "salt", "first_head", "threshold"), "i32"), "scale": "fp32", "factor": "fp32"}


CASES = [
    *[_case(kernel, width, torch.bfloat16, architectures)
      for architectures in _SAME_LAUNCH for width in (32, 64, 128) for kernel in _KERNELS],
    *[_case("backward_keys", width, torch.bfloat16, (90, 100), atomic=True) for width in (64, 128)],
    *[_case(kernel, 64, torch.float32, architectures) for architectures in _SAME_LAUNCH for kernel in _KERNELS],
    *[_case(kernel, width, dtype, architectures, dropping=True) for architectures in _SAME_LAUNCH
      for width, dtype in ((64, torch.bfloat16), (128, torch.bfloat16), (64, torch.float32)) for kernel in _KERNELS],
    *[_case("backward_keys", width, torch.bfloat16, (90, 100), atomic=True, dropping=True) for width in (64, 128)],
]
