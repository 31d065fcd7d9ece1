"""Machine code of the CUDA C++ kernels, without a GPU: registers, spills, shared memory, instructions.

    python -m dist_metaxlm.kernels.aot.cuda --output docs/results/2026-11-22-cuda-aot.md      (make kernels-cuda-aot)

Read back from the library of `make kernels` with `cuobjdump` of the Triton wheel; neither a GPU nor a driver is needed. The
command exits with 1 if a kernel spills, exceeds the architecture's shared memory or lacks the instructions that it is
written for. It does not show whether a kernel is correct (tests/kernels, on the host) or fast.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dist_metaxlm.errors import EXIT_BUG, EXIT_DONE, UserError, run_command
from dist_metaxlm.kernels.aot.compile import SHARED_MEMORY, cuobjdump

EXPECTED = {"portable": ("HMMA", "LDSM", "LDGSTS"), "hopper": ("HGMMA", "UTMALDG", "SYNCS", "USETMAXREG", "WARPGROUP")}
"""Instructions that show that the machine code does what the source says: products on tensor cores, their operands from
shared memory, asynchronous copies; for Hopper's kernel also barriers and the reallocation of registers."""
ORDERINGS = 8
"""WARPGROUP instructions of Hopper's kernel: one before and one after each of its four runs of products. More of them mean
that the compiler serialised the products."""
OVERLAPPED = "MUFU.EX2 beside products"
BLOCK_SCORES = 64
"""Scores of a block per lane; their exponentials must be computed while the previous products run."""
NAME = re.compile(r"_ZN7metaxlm(6hopper)?17attention_forwardILi(\d+)E")

HEADING = """# CUDA C++ kernels, compiled ahead of time

`python -m dist_metaxlm.kernels.aot.cuda`, without a GPU; what the kernels are: docs/kernels-attention.md. Registers with
which a thread is launched, spilled bytes per thread, shared memory of a block of threads in bytes, important instructions.
Hopper's kernel runs on sm_90 alone; there its producers release registers down to 24 and its consumers acquire up to 240.

"""


@dataclass(frozen=True)
class KernelCode:
    """Machine code of one kernel for one architecture."""

    variant: str
    """Of `attention_cuda.VARIANTS`."""
    width: int
    """Channels of a head."""
    architecture: str
    """Such as "sm_90a"."""
    registers: int
    stack: int
    """Bytes of local memory per thread: spilled registers."""
    shared: int
    """Bytes per block of threads."""
    instructions: dict[str, int]
    """Those of `EXPECTED`, with their number."""

    @property
    def problems(self) -> list[str]:
        """Why it must not be shipped."""
        room = SHARED_MEMORY[int(re.sub(r"\D", "", self.architecture))]
        problems = [f"no {name}" for name, count in self.instructions.items() if not count]
        problems += ["products wait for each other"] * (self.instructions.get("WARPGROUP", 0) > ORDERINGS)
        problems += ["weights wait for products"] * (self.instructions.get(OVERLAPPED, BLOCK_SCORES) < BLOCK_SCORES)
        return (
            problems
            + [f"spills {self.stack} bytes"] * (self.stack > 0)
            + [f"{self.shared} bytes of shared memory, {room} are available"] * (self.shared > room)
        )


def kernels_in(library: Path, shared_bytes: Callable[[int, str], int]) -> list[KernelCode]:
    """The attention kernels in the machine code of `library`; `shared_bytes(width, variant)` is the request of a launch."""
    usage = dict(_sections(cuobjdump("--dump-resource-usage", str(library))))
    kernels = []
    for key, code in _sections(cuobjdump("--dump-sass", str(library))):
        architecture, variant, width = key
        if variant == "hopper" and architecture != "sm_90a":
            continue  # no body for this architecture
        operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", code, re.MULTILINE)
        counts = {name: operations.count(name) for name in EXPECTED[variant]}
        if variant == "hopper":
            counts[OVERLAPPED] = _exponentials_beside_products(code)
        used = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage[key])}
        kernels.append(
            KernelCode(
                variant,
                width,
                architecture,
                used["REG"],
                max(used["STACK"], used["LOCAL"]),
                shared_bytes(width, variant),
                counts,
            )
        )
    return kernels


def _exponentials_beside_products(code: str) -> int:
    """Exponentials between the wait for a block's scores and the wait for the mixture of the block before it."""
    waits = re.split(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x", code)
    return sum(after.count("MUFU.EX2") for after in waits[1:] if after.startswith("1"))


def _sections(listing: str) -> list[tuple[tuple[str, str, int], str]]:
    """((architecture, variant, width), listing of cuobjdump) of each kernel."""
    sections = []
    for part in re.split(r"^Fatbin (?=elf code)", listing, flags=re.MULTILINE)[1:]:
        architecture = re.search(r"^arch = (\w+)", part, re.MULTILINE)
        for kernel in re.split(r"^\s*Function\s*:?\s*", part, flags=re.MULTILINE)[1:]:
            name = NAME.match(kernel)
            if name and architecture:
                variant = "hopper" if name[1] else "portable"
                sections.append(((architecture[1], variant, int(name[2])), kernel))
    return sections


def table(kernels: list[KernelCode], compiler: str) -> str:
    """A Markdown table, one line per kernel and architecture."""
    lines = [
        f"{compiler}.",
        "",
        "| kernel | head dimension | architecture | registers | spilled | shared | instructions | problems |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kernel in sorted(kernels, key=lambda one: (one.variant, one.width, int(re.sub(r"\D", "", one.architecture)))):
        instructions = ", ".join(f"{count} {name}" for name, count in kernel.instructions.items())
        lines.append(
            f"| {kernel.variant} | {kernel.width} | {kernel.architecture} | {kernel.registers} | {kernel.stack} | "
            f"{kernel.shared} | {instructions} | {'; '.join(kernel.problems) or '-'} |"
        )
    return "\n".join(lines) + "\n"


def compiler_of(library: Path) -> str:
    """The release of CUDA's compiler recorded in the machine code."""
    named = re.search(rb"Cuda compilation tools, (release [\d.]+, V[\d.]+)", library.read_bytes())
    return f"CUDA {named[1].decode()}" if named else "a compiler that left no name"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, help="instead of the one that make kernels builds")
    parser.add_argument("--output", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        raise UserError("the package triton is not installed; `pip install triton` brings cuobjdump, no GPU is needed")
    from dist_metaxlm.kernels.attention import cuda as attention_cuda

    library = arguments.library or attention_cuda.LIBRARY
    try:
        kernels = kernels_in(library, partial(attention_cuda.shared_bytes, attention_cuda.load(library.resolve())))
    except (OSError, AttributeError) as error:
        raise UserError(f"{library} cannot be loaded ({error}); make kernels builds it where nvcc is installed") from None
    text = table(kernels, compiler_of(library))
    if arguments.output:
        arguments.output.write_text(HEADING + text, encoding="utf-8")
    else:
        print(text, end="")
    failed = sum(bool(kernel.problems) for kernel in kernels)
    print(f"{len(kernels)} kernels read, {failed} with problems")
    return EXIT_BUG if failed or not kernels else EXIT_DONE


if __name__ == "__main__":
    run_command(main)
