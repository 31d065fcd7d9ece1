"""The CUDA C++ attention without a GPU: its source run thread by thread on the host, and the library nvcc builds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.attention import attention_pattern, packed_attention
from dist_metaxlm.kernels.tiles import tile_table

from dist_metaxlm.errors import UserError

pytest.importorskip("triton")  # its backward is the Triton one
from dist_metaxlm.kernels import attention_cuda as cuda
from dist_metaxlm.kernels.attention_operator import attention_outputs

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kernels" / "cuda"


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    library = tmp_path_factory.mktemp("emulation") / "libemulated.so"
    subprocess.run(["g++", "-O1", "-std=c++17", "-w", "-fno-strict-aliasing", "-shared", "-fPIC", f"-I{SOURCES}",
                    "-I", "emulation", "emulation/attention.cpp", "-o", str(library)], cwd=Path(__file__).parent, check=True)
    return library


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: the CUDA library cannot be built here")
    library = tmp_path_factory.mktemp("built") / "libmetaxlm_kernels.so"
    # One architecture: the fat library of `make kernels` takes three times as long.
    subprocess.run(["make", "-s", "-C", str(ROOT), "kernels", f"KERNEL_LIBRARY={library}",
                    "KERNEL_TARGETS=-gencode=arch=compute_80,code=sm_80"], check=True, capture_output=True)
    return library


def reference(fused: torch.Tensor, lengths: list[int], local_window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    queries, keys, values = fused.double().unbind(2)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = torch.arange(ids.numel())
    allowed = ids[:, None] == ids[None]
    if local_window is not None:
        allowed &= (places[:, None] - places[None]).abs() <= local_window // 2
    scores = torch.einsum("qhd,khd->hqk", queries, keys) / queries.shape[2] ** 0.5
    scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1) / torch.log(torch.tensor(2.0))


@pytest.mark.parametrize(("lengths", "local_window", "heads", "width"), [
    ([1, 3, 90, 2], None, 1, 64), ([131, 5], None, 2, 32), ([200], 24, 1, 32), ([65, 1], None, 1, 128)])
def test_the_kernel_source_computes_attention(
    emulated: Path, lengths: list[int], local_window: int | None, heads: int, width: int
) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    fused = torch.randn(tokens, heads, 3, width).bfloat16()
    cuts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    table = tile_table(cuts, tokens, cuda.TILE_ROWS, local_window)
    outputs = attention_outputs(fused[:, :, 0])
    assert cuda.launch(cuda.load(emulated), fused.unbind(2), outputs, table.tiles, table.bounds, table.rows, 0) == 0
    mixed, log_sums = reference(fused, lengths, local_window)
    # Weights and output are rounded to bf16 (2 ** -9 relative each).
    torch.testing.assert_close(outputs[0].double(), mixed, rtol=1e-2, atol=1e-2)
    assert (outputs[0].double() - mixed).norm() / mixed.norm() < 4e-3
    torch.testing.assert_close(outputs[1].double(), log_sums.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a device")
def test_the_library_loads_without_a_gpu_and_refuses_cleanly(built: Path) -> None:
    library = cuda.load(built)
    assert library.metaxlm_abi_version() == cuda.ABI_VERSION
    fused = torch.zeros(8, 1, 3, 64, dtype=torch.bfloat16)
    table = tile_table(torch.tensor([0, 8]), 8, cuda.TILE_ROWS, None)
    outputs = attention_outputs(fused[:, :, 0])
    code = cuda.launch(library, fused.unbind(2), outputs, table.tiles, table.bounds, table.rows, 0)
    assert code > 0
    assert b"driver" in library.metaxlm_error_string(code) or b"device" in library.metaxlm_error_string(code)
    assert cuda.launch(library, fused.unbind(2), outputs, table.tiles, table.bounds, 64, 0) == -1
    assert b"unsupported shape" in library.metaxlm_error_string(-1)


def test_a_missing_library_is_said_and_fails_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "libmetaxlm_kernels.so")
    monkeypatch.setattr(registry, "_REASONS", {})
    ids = torch.zeros(8, dtype=torch.int64)
    pattern = attention_pattern(ids, torch.tensor([0, 8], dtype=torch.int32), 8, None, torch.float32)
    states = torch.randn(8, 1, 16)
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    assert packed_attention(states, states, states, pattern).shape == states.shape
    monkeypatch.setenv(registry.VARIABLE, "cuda")
    with pytest.raises(UserError, match="is not built"):
        packed_attention(states, states, states, pattern)


def test_a_damaged_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "libmetaxlm_kernels.so"
    damaged.write_bytes(os.urandom(64))
    monkeypatch.setattr(cuda, "LIBRARY", damaged)
    assert "cannot be loaded" in str(cuda.missing())


def test_unaligned_tensors_are_copied() -> None:
    storage = torch.arange(3 * 40, dtype=torch.bfloat16)
    odd = storage[1:1 + 64].view(2, 1, 32)
    assert cuda._aligned(odd).data_ptr() % 16 == 0
    assert torch.equal(cuda._aligned(odd), odd)
    even = storage[:64].view(2, 1, 32)
    assert cuda._aligned(even).data_ptr() == even.data_ptr()
