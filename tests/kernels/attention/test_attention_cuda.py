"""The CUDA C++ attention without a GPU: its source run thread by thread on the host, and the library nvcc builds."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.attention.dispatch import attention_pattern, packed_attention
from dist_metaxlm.kernels.attention.tiles import tile_table

pytest.importorskip("triton")  # its backward is the Triton one
from dist_metaxlm.kernels.aot import cuda as aot_cuda
from dist_metaxlm.kernels.attention import cuda
from dist_metaxlm.kernels.attention.operator import attention_outputs

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "kernels" / "cuda"


def compile_emulation(folder: Path, sources: Path = SOURCES, optimise: str = "-O1") -> Path:
    """The kernels' sources and the emulator as one library for the host."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    library = folder / "libemulated.so"
    subprocess.run(
        [
            "g++",
            optimise,
            "-std=c++17",
            "-w",
            "-fno-strict-aliasing",
            "-shared",
            "-fPIC",
            f"-I{sources}",
            "-I",
            "emulation",
            "emulation/attention.cpp",
            "-o",
            str(library),
        ],
        cwd=Path(__file__).parents[1],
        check=True,
    )
    return library


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of `make kernels`, and beside it what the compiler said."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: the CUDA library cannot be built here")
    library = tmp_path_factory.mktemp("built") / "libmetaxlm_kernels.so"
    said = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "kernels", f"KERNEL_LIBRARY={library}"], check=True, capture_output=True, text=True
    )
    library.with_suffix(".log").write_text(said.stdout + said.stderr)
    return library


def reference(
    fused: torch.Tensor, lengths: list[int], local_window: int | None, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    queries, keys, values = fused.double().unbind(2)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = torch.arange(ids.numel())
    allowed = ids[:, None] == ids[None]
    if local_window is not None:
        allowed &= (places[:, None] - places[None]).abs() <= local_window // 2
    if causal:
        allowed &= places[:, None] >= places[None]
    scores = torch.einsum("qhd,khd->hqk", queries, keys) / queries.shape[2] ** 0.5
    scores = scores.masked_fill(~allowed, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1) / torch.log(torch.tensor(2.0))


def attend(
    library: ctypes.CDLL,
    variant: str,
    fused: torch.Tensor,
    lengths: list[int],
    local_window: int | None,
    causal: bool = False,
) -> tuple[int, tuple[torch.Tensor, torch.Tensor]]:
    """The library's code and what it wrote, on the CPU, for `fused` [T, H, 3, D]."""
    cuts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=fused.device)
    table = tile_table(cuts, sum(lengths), cuda.TILE_ROWS, local_window, "earlier" if causal else "both")
    outputs = attention_outputs(fused[:, :, 0])
    code = cuda.launch(library, fused.unbind(2), outputs, table.tiles, table.bounds, table.rows, 0, variant)
    return code, (outputs[0].cpu(), outputs[1].cpu())


CASES = pytest.mark.parametrize(
    ("variant", "lengths", "local_window", "heads", "width"),
    [
        ("portable", [1, 3, 90, 2], None, 1, 64),
        ("portable", [131, 5], None, 2, 32),
        ("portable", [200], 24, 1, 32),
        ("portable", [65, 1], None, 1, 128),
        # Three and more blocks of keys refill a ring of stages; two heads and tiles give a block of threads several tiles.
        ("hopper", [1, 3, 90, 2], None, 1, 64),
        ("hopper", [131, 5, 400], None, 2, 64),
        ("hopper", [300], 24, 1, 64),
        ("hopper", [65, 1], None, 1, 128),
        ("hopper", [1, 420], None, 1, 128),
        ("hopper", [260, 3], 100, 3, 128),
        ("hopper", [131, 5], None, 2, 32),
        ("hopper", [420], 24, 1, 32),
    ],
)


@CASES
def test_the_kernel_source_computes_attention(
    emulated: Path, variant: str, lengths: list[int], local_window: int | None, heads: int, width: int
) -> None:
    check(cuda.load(emulated), variant, lengths, local_window, heads, width, "cpu")


@pytest.mark.parametrize("local_window", [None, 24])
@pytest.mark.parametrize("variant", ["portable", "hopper"])
def test_the_kernel_source_computes_causal_attention(emulated: Path, variant: str, local_window: int | None) -> None:
    check(cuda.load(emulated), variant, [3, 150, 2], local_window, 1, 64, "cpu", causal=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@CASES
def test_the_kernel_computes_attention_on_a_device(
    built: Path, variant: str, lengths: list[int], local_window: int | None, heads: int, width: int
) -> None:
    if variant == "hopper" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("Hopper's kernel needs sm_90")
    check(cuda.load(built), variant, lengths, local_window, heads, width, "cuda")


def check(
    library: ctypes.CDLL,
    variant: str,
    lengths: list[int],
    local_window: int | None,
    heads: int,
    width: int,
    device: str,
    causal: bool = False,
) -> None:
    torch.manual_seed(0)
    fused = torch.randn(sum(lengths), heads, 3, width).bfloat16()
    code, outputs = attend(library, variant, fused.to(device), lengths, local_window, causal)
    assert code == 0, library.metaxlm_error_string(code)
    mixed, log_sums = reference(fused, lengths, local_window, causal)
    # Weights and output are rounded to bf16 (2 ** -9 relative each).
    torch.testing.assert_close(outputs[0].double(), mixed, rtol=1e-2, atol=1e-2)
    assert (outputs[0].double() - mixed).norm() / mixed.norm() < 4e-3
    torch.testing.assert_close(outputs[1].double(), log_sums.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 1, 2, 3)], ids=["parts of a token", "parts of a head"])
def test_hopper_reads_queries_keys_and_values_as_they_lie(emulated: Path, order: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    stored = torch.randn([(70, 2, 3, 64)[i] for i in order]).bfloat16()
    fused = stored.permute(order)
    code, outputs = attend(cuda.load(emulated), "hopper", fused, [70], None)
    assert code == 0
    mixed, _ = reference(fused, [70], None)
    assert (outputs[0].double() - mixed).norm() / mixed.norm() < 4e-3


def test_strides_without_a_tensor_map_are_refused(emulated: Path) -> None:
    transposed = torch.zeros(2, 3, 70, 64, dtype=torch.bfloat16).permute(2, 0, 1, 3)  # a head's stride above a token's
    assert attend(cuda.load(emulated), "hopper", transposed, [70], None)[0] == -2


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        # The stage is left while the products still read it.
        (
            "        wait_products<0>();\n        pin(run.mixed);\n        leave(&shared.values_empty[last.stage]);",
            "        leave(&shared.values_empty[last.stage]);\n        wait_products<0>();",
            "an operand changed",
        ),
        ("        wait_barrier(&shared.values_full[last.stage], last.parity);\n", "", ""),
        ("field(leading) << 16 | field(STRIDE) << 32", "field(STRIDE) << 16 | field(leading) << 32", ""),
        ("const bf16* values) {\n    fence_products();", "const bf16* values) {", "without a fence"),
    ],
)
def test_the_emulator_notices(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    sources = shutil.copytree(SOURCES, tmp_path / "cuda")
    source = (sources / "attention_sm90.cuh").read_text()
    assert source.count(right) == 1
    (sources / "attention_sm90.cuh").write_text(source.replace(right, wrong))
    library = cuda.load(compile_emulation(tmp_path, sources, "-O0"))
    torch.manual_seed(0)
    fused = torch.randn(400, 1, 3, 128).bfloat16()
    code, outputs = attend(library, "hopper", fused, [400], None)
    assert said in library.metaxlm_error_string(code).decode()
    mixed, _ = reference(fused, [400], None)
    assert code or not torch.allclose(outputs[0].double(), mixed, rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a device")
def test_the_library_loads_without_a_gpu_and_refuses_cleanly(built: Path) -> None:
    library = cuda.load(built)
    assert library.metaxlm_abi_version() == cuda.ABI_VERSION
    fused = torch.zeros(8, 1, 3, 64, dtype=torch.bfloat16)
    for variant in cuda.VARIANTS:
        code, _ = attend(library, variant, fused, [8], None)
        assert code > 0
        assert b"driver" in library.metaxlm_error_string(code) or b"device" in library.metaxlm_error_string(code)
    table = tile_table(torch.tensor([0, 8]), 8, cuda.TILE_ROWS, None)
    outputs = attention_outputs(fused[:, :, 0])
    assert cuda.launch(library, fused.unbind(2), outputs, table.tiles, table.bounds, 64, 0) == -1
    assert b"unsupported" in library.metaxlm_error_string(-1)


def test_the_machine_code_fits_its_architecture(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["aot_cuda", "--library", str(built), "--output", str(output)])
    assert aot_cuda.main() == 0, output.read_text()
    rows = [line for line in output.read_text().splitlines() if line.startswith(("| hopper", "| portable"))]
    assert [tuple(row.split(" | ")[:3]) for row in rows] == [
        *(("| hopper", width, "sm_90a") for width in ("32", "64", "128")),
        *(("| portable", width, sm) for width in ("32", "64", "128") for sm in ("sm_80", "sm_90a", "sm_100a")),
    ]
    assert all(row.endswith("| - |") for row in rows)
    assert "serialized" not in built.with_suffix(".log").read_text()
    assert cuda.shared_bytes(cuda.load(built), 96, "hopper") == -1


def test_problems_of_machine_code_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = aot_cuda.KernelCode("hopper", 64, "sm_90a", 168, 0, 1024, {"HGMMA": 4, "WARPGROUP": 8, aot_cuda.OVERLAPPED: 64})
    assert good.problems == []
    bad = replace(good, stack=8, shared=2**18, instructions={"HGMMA": 0, "WARPGROUP": 48, aot_cuda.OVERLAPPED: 2})
    assert bad.problems == [
        "no HGMMA",
        "products wait for each other",
        "weights wait for products",
        "spills 8 bytes",
        "262144 bytes of shared memory, 232448 are available",
    ]
    monkeypatch.setattr(sys, "argv", ["aot_cuda", "--library", str(tmp_path / "none.so")])
    with pytest.raises(UserError, match="cannot be loaded"):
        aot_cuda.main()


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
    odd = storage[1 : 1 + 64].view(2, 1, 32)
    assert cuda._aligned(odd).data_ptr() % 16 == 0
    assert torch.equal(cuda._aligned(odd), odd)
    even = storage[:64].view(2, 1, 32)
    assert cuda._aligned(even).data_ptr() == even.data_ptr()
