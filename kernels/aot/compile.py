"""Compile every kernel in every configuration for GPUs that need not be present, and tabulate the machine code.

    python -m dist_metaxlm.kernels.aot --output docs/results/2026-11-22-kernels-aot.md      (make kernels-aot)

Neither a GPU nor a driver is needed: Triton compiles for any architecture, and `cuobjdump` of its wheel reads registers,
stack, shared memory and instructions back from the machine code. A configuration in use, the first of its list, must
not spill, must fit the architecture's shared memory and must hold the instructions that its case expects; the command
exits with 1 if one does not. It does not show whether a kernel is correct (tests/kernels, in the interpreter) or fast.

To add kernels, list `Case`s in a module and name the module in `SOURCES`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE, UserError

if TYPE_CHECKING:
    from triton.compiler import CompiledKernel

SOURCES = ("dist_metaxlm.kernels.aot.cases", "dist_metaxlm.kernels.aot.attention")
"""Modules whose `CASES` are compiled."""
SHARED_MEMORY = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Shared memory a program may have, in bytes, by compute capability (CUDA programming guide, table of limits).

Code compiled for sm_80, which has 163 KiB, is launched in the same way on sm_86 and sm_89, which have 99."""

HEADING = """# Kernels, compiled ahead of time

`python -m dist_metaxlm.kernels.aot`, without a GPU; docs/kernels.md describes the kernels and the columns.

"""


@dataclass(frozen=True)
class Case:
    """A kernel with the arguments of its launch."""

    name: str
    """Name in the table."""
    kernel: str
    """"module:function" of a `triton.jit` function."""
    signature: dict[str, str | None]
    """Argument -> Triton type such as "*bf16", "i32", "fp32", "tensordesc<bf16[64, 64]>"; None: not given."""
    constants: Mapping[str, object]
    """Compile-time arguments that are the same in all configurations; "tl.NAME" stands for a Triton type."""
    configurations: list[dict[str, int]]
    """Other compile-time arguments, num_warps and num_stages; the first one is in use."""
    aligned: tuple[str, ...] = ()
    """Integers divisible by 16; pointers always are."""
    expects: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Architecture -> regular expressions that instructions of its machine code must begin with, such as ("HGMMA",)."""
    architectures: tuple[int, ...] = (80, 90, 100, 120)
    """Compute capabilities it is compiled for."""


@dataclass(frozen=True)
class Compiled:
    """Machine code of one configuration for one architecture."""

    case: str
    configuration: dict[str, int]
    architecture: int
    in_use: bool
    registers: int
    stack: int
    """Bytes of local memory per thread: spilled registers."""
    shared: int
    """Bytes per program."""
    wide: int
    """16-byte loads and stores of global memory."""
    tensor: str
    """Tensor-core instructions, with their number."""
    problems: tuple[str, ...]


def cases() -> list[Case]:
    """All cases of all sources."""
    return [case for source in SOURCES for case in importlib.import_module(source).CASES]


def compile_case(case: Case, configuration: dict[str, int], architecture: int) -> Compiled:
    """Compile one configuration for one architecture."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = case.kernel.split(":")
    function = getattr(importlib.import_module(module), name)
    options = {key: value for key, value in configuration.items() if key in ("num_warps", "num_stages", "maxnreg")}
    constants = {
        **case.constants,
        **{key: value for key, value in configuration.items() if key not in options},
        **{key: None for key, kind in case.signature.items() if kind is None},
    }
    constants = {
        key: getattr(tl, value[3:]) if isinstance(value, str) and value.startswith("tl.") else value
        for key, value in constants.items()
        if key in function.arg_names
    }
    signature = {key: "constexpr" if key in constants else str(case.signature[key]) for key in function.arg_names}
    aligned = [key for key, kind in signature.items() if kind.startswith("*") or key in case.aligned]
    places = {key: (function.arg_names.index(key),) for key in function.arg_names}
    source = ASTSource(
        function,
        signature,
        {places[key]: value for key, value in constants.items()},
        {places[key]: [["tt.divisibility", 16]] for key in aligned},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={**options, "enable_fp_fusion": True}
    )
    return _read(case, configuration, architecture, compiled)


def _read(case: Case, configuration: dict[str, int], architecture: int, compiled: CompiledKernel) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = cuobjdump("--dump-resource-usage", file.name)
        code = cuobjdump("--dump-sass", file.name)
    resources = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code, re.MULTILINE)
    stack, shared = max(resources.get("STACK", 0), resources.get("LOCAL", 0)), compiled.metadata.shared
    tensor = {name: sum(op.split(".")[0] == name for op in operations) for name in ("HMMA", "HGMMA", "UTCHMMA", "IMMA")}
    problems = []
    if not operations or "REG" not in resources:
        problems.append("machine code not understood")
    if stack:
        problems.append(f"spills {stack} bytes")
    if shared > SHARED_MEMORY[architecture]:
        problems.append(f"{shared} bytes of shared memory, {SHARED_MEMORY[architecture]} are available")
    problems += [
        f"no {wanted}" for wanted in case.expects.get(architecture, ()) if not any(re.match(wanted, op) for op in operations)
    ]
    return Compiled(
        case.name,
        configuration,
        architecture,
        configuration == case.configurations[0],
        resources.get("REG", 0),
        stack,
        shared,
        sum(op.startswith(("LDG.E", "STG.E")) and ".128" in op for op in operations),
        ", ".join(f"{count} {name}" for name, count in tensor.items() if count),
        tuple(problems),
    )


def cuobjdump(action: str, path: str) -> str:
    """Output of the Triton wheel's cuobjdump for machine code."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}  # it starts nvdisasm
    return subprocess.run(
        [tools / "cuobjdump", action, path],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
        env=environment,
    ).stdout


def compile_all(chosen: list[Case], architectures: tuple[int, ...], jobs: int, only_in_use: bool) -> list[Compiled]:
    """Every configuration (or the ones in use) of `chosen` for every architecture, over `jobs` processes."""
    work = [
        (case, configuration, architecture)
        for case in chosen
        for configuration in case.configurations[: 1 if only_in_use else None]
        for architecture in architectures
        if architecture in case.architectures
    ]
    if jobs == 1:
        return [compile_case(*item) for item in work]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compile_case, *zip(*work, strict=True)))


def table(rows: list[Compiled]) -> str:
    """A Markdown table, one line per case and configuration, the architectures side by side."""
    import triton

    lines = [
        f"Triton {triton.__version__}. Registers per thread, spilled bytes per thread, shared memory in bytes, 16-byte "
        "loads and stores, tensor-core instructions. `*`: the configuration in use.",
        "",
        "| kernel | configuration | sm | registers | spilled | shared | wide | tensor cores | problems |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        configuration = " ".join(f"{key}={value}" for key, value in row.configuration.items())
        lines.append(
            f"| {row.case}{' *' if row.in_use else ''} | {configuration} | {row.architecture} | {row.registers} | "
            f"{row.stack} | {row.shared} | {row.wide} | {row.tensor or '-'} | {'; '.join(row.problems) or '-'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="write the table to this Markdown file")
    parser.add_argument("--only", nargs="+", default=[""], help="only kernels whose name contains one of these")
    parser.add_argument("--in_use", action="store_true", help="only the first configuration of each list")
    parser.add_argument(
        "--sm",
        type=int,
        nargs="+",
        default=sorted(SHARED_MEMORY),
        choices=sorted(SHARED_MEMORY),
        help="compute capabilities (default: all)",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    arguments = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        raise UserError("the package triton is not installed; `pip install triton` brings the compiler, no GPU is needed")
    os.environ.pop("TRITON_INTERPRET", None)  # read when the kernels are imported, later
    chosen = [case for case in cases() if any(part in case.name for part in arguments.only)]
    rows = compile_all(chosen, tuple(arguments.sm), arguments.jobs, arguments.in_use)
    if arguments.output:
        Path(arguments.output).write_text(HEADING + table(rows), encoding="utf-8")
    else:
        print(table(rows), end="")
    failed = [row for row in rows if row.in_use and row.problems]
    print(
        f"{len(rows)} configurations compiled, {sum(bool(row.problems) for row in rows)} with problems, "
        f"{len(failed)} of those in use"
    )
    return EXIT_BUG if failed else EXIT_DONE
