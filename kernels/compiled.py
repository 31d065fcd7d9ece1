"""What Triton makes of a kernel without a GPU: registers, spills, shared memory and tensor-core instructions.

`triton.compile` needs no driver, and the wheel brings ptxas and nvdisasm. Timings, races and correctness cannot be known
this way; a spill, a serialised wgmma or a kernel that fell back to plain multiplications can.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory a block may have (CUDA programming guide, table of compute capabilities)."""


@dataclass(frozen=True)
class Compiled:
    """Figures of one kernel for one architecture."""

    registers: int
    spills: int
    """Bytes stored to and loaded from local memory."""
    shared: int
    """Bytes of shared memory."""
    warps: int
    instructions: dict[str, int]
    """SASS operation -> occurrences in the kernel."""

    def tensor_core(self) -> str:
        """The tensor-core instruction in use: HMMA (mma.sync), HGMMA (wgmma), UTCHMMA (tcgen05), or none."""
        found = [name for name in ("UTCHMMA", "HGMMA", "HMMA") if self.instructions.get(name)]
        return found[0] if found else "none"


def compile_kernel(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], aligned: list[str], architecture: int,
    warps: int, stages: int,
) -> Compiled:
    """Compile `kernel` for sm_`architecture`.

    Args:
        signature: argument -> Triton type, such as "*bf16", "i32", "fp32".
        constants: values of the constexpr arguments.
        aligned: arguments divisible by 16, which a launch would find out from their values.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name in names}
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = triton.compile(ASTSource(kernel, types, values, attributes), target=GPUTarget("cuda", architecture, 32),
                          options=options)
    registers, spills = _resources(made.asm["ptx"], architecture)
    return Compiled(registers, spills, made.metadata.shared, made.metadata.num_warps, _instructions(made.asm["cubin"]))


def _tools() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _resources(ptx: str, architecture: int) -> tuple[int, int]:
    """(registers, bytes spilled) that ptxas reports for a kernel."""
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    # From sm_90 on Triton 3.9 assembles with the newer of its two; older wheels have only one.
    tools = sorted(_tools().glob("ptxas*"), reverse=architecture >= 90)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        for tool in tools:
            command = [str(tool), "-v", f"--gpu-name={target[1]}", str(source), "-o", os.devnull]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
    counts = [re.search(pattern, done.stderr) for pattern in
              (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")]
    assert all(counts), done.stderr
    registers, stores, loads = (int(found[1]) for found in counts if found)
    return registers, stores + loads


def _instructions(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(_tools() / "nvdisasm"), "-c", file.name], capture_output=True, text=True,
                              check=True).stdout
    return dict(Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_]+)", text)))
