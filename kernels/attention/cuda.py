"""The CUDA C++ attention forward (kernels/cuda), bound through ctypes; its backward is the Triton one.

`make kernels` builds the library with nvcc; without it nothing fails and the registry reports what runs instead.
The registry uses this forward only when forced: it is not known to be faster than the Triton one on any device.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.kernels.attention.dispatch import AttentionPattern, uses_atomics
from dist_metaxlm.kernels.attention.operator import (
    attention_outputs,
    backward,
    channels_together,
    save_for_backward,
    table_arguments,
)
from dist_metaxlm.kernels.registry import forced

LIBRARY = Path(__file__).parents[1] / "cuda" / "libmetaxlm_kernels.so"
ABI_VERSION = 2
WIDTHS = (32, 64, 128)
TILE_ROWS = 128
VARIANTS = {"automatic": 0, "portable": 1, "hopper": 2}
"""Kernels of the library: automatic is Hopper's (wgmma, TMA) on sm_90, else the portable one."""
_variant = "automatic"

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_MATRIX = [_POINTER, _LONG, _LONG]
_ARGUMENTS: list[Any] = [*_MATRIX * 3, *[_POINTER] * 4, _INT, _INT, _LONG, _INT, _INT, ctypes.c_float, _INT, _POINTER]


def missing() -> str | None:
    """Why the CUDA attention cannot run on this machine, or None."""
    if not LIBRARY.exists():
        return "kernels/cuda/libmetaxlm_kernels.so is not built (make kernels builds it where nvcc is installed)"
    try:
        version = load(LIBRARY).metaxlm_abi_version()
    except (OSError, AttributeError) as error:
        return f"kernels/cuda/libmetaxlm_kernels.so cannot be loaded ({error}); run make kernels again"
    if version != ABI_VERSION:
        return f"kernels/cuda/libmetaxlm_kernels.so is of version {version}, not {ABI_VERSION}; run make kernels again"
    return None if torch.cuda.is_available() else "there is no CUDA device"


def accepts(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pattern: AttentionPattern | None) -> bool:
    """Whether the kernel is requested and supports these: bf16 on sm_80 or newer, head dimension 32, 64 or 128."""
    fitting = queries.is_cuda and queries.dtype == torch.bfloat16 and queries.shape[2] in WIDTHS and queries.numel() > 0
    return fitting and forced() == "cuda" and torch.cuda.get_device_capability(queries.device) >= (8, 0)


def cuda_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, pattern: AttentionPattern, dropout: None = None
) -> torch.Tensor:
    """As `reference_attention`: [T, H, D] bf16 three times -> [T, H, D]."""
    outputs: torch.Tensor = cuda_attention_forward(queries, keys, values, *table_arguments(pattern), uses_atomics())[0]
    return outputs


@contextmanager
def using(variant: str) -> Iterator[None]:
    """Use a kernel of `VARIANTS` temporarily, to compare them on one device. Launches fail if that kernel cannot run."""
    global _variant
    assert variant in VARIANTS, variant
    before, _variant = _variant, variant
    try:
        yield
    finally:
        _variant = before


@torch.library.custom_op("dist_metaxlm::cuda_attention_forward", mutates_args=())
def cuda_attention_forward(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tiles: torch.Tensor,
    bounds: torch.Tensor,
    key_tiles: torch.Tensor | None,
    key_bounds: torch.Tensor | None,
    rows: int,
    atomic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attention_operator.attention_forward`."""
    queries, keys, values = (_aligned(tensor) for tensor in (queries, keys, values))
    outputs = attention_outputs(queries)
    with torch.cuda.device(queries.device):
        stream = torch.cuda.current_stream().cuda_stream
        code = launch(load(LIBRARY), (queries, keys, values), outputs, tiles, bounds, rows, stream, _variant)
    if code:
        raise RuntimeError(f"CUDA attention on {list(queries.shape)}: {load(LIBRARY).metaxlm_error_string(code).decode()}")
    return outputs


@cuda_attention_forward.register_fake
def _fake_forward(queries: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return attention_outputs(queries)


cuda_attention_forward.register_autograd(backward, setup_context=save_for_backward)


@cache
def load(path: Path) -> ctypes.CDLL:
    """The library at `path` with the types of its functions declared.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it is a different library.
    """
    library = ctypes.CDLL(str(path))
    library.metaxlm_abi_version.restype = _INT
    library.metaxlm_error_string.argtypes = (_INT,)
    library.metaxlm_error_string.restype = ctypes.c_char_p
    library.metaxlm_attention_shared_bytes.argtypes = (_INT, _INT)
    library.metaxlm_attention_shared_bytes.restype = _INT
    library.metaxlm_attention_forward.argtypes = _ARGUMENTS
    library.metaxlm_attention_forward.restype = _INT
    return library


def launch(
    library: ctypes.CDLL,
    inputs: tuple[torch.Tensor, ...],
    outputs: tuple[torch.Tensor, torch.Tensor],
    tiles: torch.Tensor,
    bounds: torch.Tensor,
    rows: int,
    stream: int,
    variant: str = "automatic",
) -> int:
    """Start a kernel of `VARIANTS` on aligned queries, keys and values; returns 0 or an error code of the library."""
    tokens, heads, width = inputs[0].shape
    matrices = [part for tensor in inputs for part in (tensor.data_ptr(), *tensor.stride()[:2])]
    code: int = library.metaxlm_attention_forward(
        *matrices,
        outputs[0].data_ptr(),
        outputs[1].data_ptr(),
        tiles.data_ptr(),
        bounds.data_ptr(),
        tiles.shape[0],
        rows,
        tokens,
        heads,
        width,
        math.log2(math.e) / math.sqrt(width),
        VARIANTS[variant],
        stream,
    )
    return code


def shared_bytes(library: ctypes.CDLL, width: int, variant: str) -> int:
    """Bytes of shared memory of a block of threads, or a negative error code of the library."""
    size: int = library.metaxlm_attention_shared_bytes(width, VARIANTS[variant])
    return size


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if the kernel's 16-byte loads cannot read it in place."""
    tensor = channels_together(tensor)
    fits = tensor.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in tensor.stride()[:2])
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)
