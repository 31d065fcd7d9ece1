"""The head's and the memory-bound kernels with the model's launches, for kernels/aot/compile.py.

Only widths and strides are assumed to be divisible by 16: vocabulary size and number of tokens are arbitrary. Shapes are
those of xlmr-base (768 channels, in tiles of 1024) and of a wide model (4096 channels), with states in bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from dist_metaxlm.kernels.aot.compile import Case
from dist_metaxlm.kernels.head import linear_cross_entropy_triton
from dist_metaxlm.kernels.pointwise import activations_triton, norm_kernels, rotary_triton

_FP32 = {"EXACT": "tl.float32"}
_WIDE = dict.fromkeys((80, 90, 100, 120), (r"LDG\.E.*\.128", r"STG\.E.*\.128"))
_ROWS = ("width",)
_RMS: dict[str, object] = {"RMS": True, "BIAS": False}


def _case(
    module: ModuleType,
    kernel: str,
    variant: str,
    signature: dict[str, str | None],
    constants: Mapping[str, object],
    aligned: tuple[str, ...] = (),
    configurations: list[dict[str, int]] | None = None,
    expects: dict[int, tuple[str, ...]] | None = None,
) -> Case:
    listed = module.CONFIGURATIONS.get(kernel, [{"num_warps": 4}])
    return Case(
        f"{kernel}{variant}",
        f"{module.__name__}:{kernel}",
        signature,
        constants,
        configurations or listed,
        aligned,
        dict(_WIDE) if expects is None else expects,
    )


def _types(kind: str, names: str) -> dict[str, str | None]:
    return dict.fromkeys(names.split(), kind)


def _head() -> list[Case]:
    module = linear_cross_entropy_triton
    numbers = _types("i32", "first vocabulary stride rows width own")
    logits = {
        **_types("*bf16", "logits bias states weight products scaled exponentials"),
        **_types("*fp32", "statistics scales at_target gradient sums gathered losses"),
        "products": "*fp32",
        "targets": "*i64",
        "row_weights": None,
        **numbers,
    }
    return [
        _case(module, "exponentials", "", logits, {"HAS_BIAS": True, **_FP32}, ("stride",)),
        _case(
            module,
            "column_sums",
            "",
            logits | {"exponentials": "*bf16"},
            _FP32,
            ("stride",),
            expects={arch: patterns[:1] for arch, patterns in _WIDE.items()},
        ),  # one store for many lines
        _case(module, "combine", "", logits, {"RANKS": 8, "WEIGHTED": False, "BLOCK": 256}, ("rows",), expects={}),
        _case(
            module, "finish_rows", "", logits, {"WANT_STATES": True, "WANT_WEIGHT": True, "BLOCK": 1024, **_FP32}, ("width",)
        ),
    ]


def _norms() -> list[Case]:
    module, cases = norm_kernels, []
    signature = {
        **_types("*bf16", "x residual weight bias summed out d_out d_summed d_x d_residual"),
        **_types("*fp32", "means scales weight_parts bias_parts"),
        "keys": "*i32",
        "salt": "i64",
        **_types("*i64", "x_rows residual_rows positions"),
        **_types("fp32", "factor eps"),
        **_types("i32", "rows width threshold"),
    }
    forward = {"RESIDUAL": True, "GATHER": False, "BIAS": True, "NORM": True, "RMS": False, "DROP": 1, **_FP32}
    variants: dict[str, dict[str, object]] = {
        " of a sum, dropout": {},
        " of a sum": {"DROP": 0},
        " alone": {"RESIDUAL": False, "DROP": 0, "BIAS": False},
        " of an embedding, dropout": {"GATHER": True, "DROP": 2},
        " left out": {"NORM": False, "BIAS": False},
        " of a sum, dropout, RMS": _RMS,
        " of a sum, RMS": {**_RMS, "DROP": 0},
        " alone, RMS": {**_RMS, "RESIDUAL": False, "DROP": 0},
        " of an embedding, RMS": {**_RMS, "RESIDUAL": False, "GATHER": True, "DROP": 0},
    }
    backward = {"UPSTREAM": False, "BIAS": True, "RMS": False, "PROGRAMS": 264, **_FP32}
    backwards: dict[str, dict[str, object]] = {
        ", dropout": {"DROP": 1},
        ", pre-norm": {"DROP": 0, "UPSTREAM": True},
        " of an embedding, dropout": {"DROP": 2},
        ", dropout, pre-norm, RMS": {**_RMS, "DROP": 1, "UPSTREAM": True},
        ", pre-norm, RMS": {**_RMS, "DROP": 0, "UPSTREAM": True},
        " alone, RMS": {**_RMS, "DROP": 0},
    }
    for width in (1024, 4096):
        for kernel, constants, kinds in (
            ("norm_forward", forward, variants),
            ("norm_backward", backward, backwards),
            ("drop_rows", _FP32, {"": {}}),
        ):
            listed = module.CONFIGURATIONS[kernel]
            for variant, change in kinds.items():
                given = signature | ({"means": None, "bias": None} if change.get("RMS") else {})
                cases.append(
                    _case(
                        module,
                        kernel,
                        f"{variant}, {width}",
                        given,
                        {**constants, **change, "BLOCK": width},
                        _ROWS,
                        listed[:-1] if width == 1024 else listed[-1:],
                    )
                )
    return cases


def _activations() -> list[Case]:
    module = activations_triton
    signature = {
        **_types("*bf16", "states bias out upstream gradient gate of_states of_gate"),
        "parts": "*fp32",
        **_types("i32", "rows width count"),
    }
    extra = {"bias_gelu_backward": {"PROGRAMS": 64}}
    return [
        _case(module, kernel, "", signature, {**_FP32, **extra.get(kernel, {})}, (*_ROWS, "count"))
        for kernel in ("bias_gelu_forward", "bias_gelu_backward", "geglu_forward", "geglu_backward")
    ]


def _rotary() -> list[Case]:
    signature = {
        **_types("*bf16", "states cosines sines out"),
        **_types("i32", "tokens heads token_stride head_stride direction"),
    }
    return [
        _case(
            rotary_triton,
            "turn_heads",
            ", 12 heads of 64",
            signature,
            {"HALF": 32, "HEADS": 16, **_FP32},
            ("token_stride", "head_stride"),
        )
    ]


CASES = [*_head(), *_norms(), *_activations(), *_rotary()]
