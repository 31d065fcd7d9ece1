"""The harness compiles without a GPU and says what it finds; `make kernels-aot` compiles everything."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.aot import compile as aot
from dist_metaxlm.kernels.head import linear_cross_entropy
from dist_metaxlm.kernels.pointwise import activations, norm, rotary

triton = pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[3]


OPERATORS = activations, linear_cross_entropy, norm, rotary  # imported, so registered


def compile_some(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: in this one Triton interprets."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "dist_metaxlm.kernels.aot", "--in_use", "--jobs", "1", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=False,
    )


def test_what_is_in_use_neither_spills_nor_loads_narrowly() -> None:
    result = compile_some("--sm", "90", "--only", "exponentials", "norm_backward, dropout, 1024", "bias_gelu_backward")
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("exponentials *", "norm_backward, dropout, 1024 *", "bias_gelu_backward *"):
        assert f"| {name} |" in result.stdout
    assert result.stdout.rstrip().endswith("0 with problems, 0 of those in use")


def test_a_problem_in_use_fails(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    script = (
        "import os; os.environ.pop('TRITON_INTERPRET', None)\n"
        "import sys, dataclasses\nfrom dist_metaxlm.kernels.aot import cases as aot_cases, compile as aot\n"
        "case = next(c for c in aot_cases.CASES if c.name.startswith('drop_rows'))\n"
        "aot_cases.CASES[:] = [dataclasses.replace(case, expects={80: ('HMMA',)})]\n"
        f"sys.argv = ['aot', '--in_use', '--sm', '80', '--jobs', '1', '--output', {str(output)!r}]\n"
        "raise SystemExit(aot.main())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "no HMMA" in output.read_text(encoding="utf-8")


ONES = """
import importlib, os
os.environ.pop("TRITON_INTERPRET", None)
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from dist_metaxlm.kernels.aot import compile as aot

target, done = GPUTarget("cuda", 90, 32), set()
for case in aot.cases():
    if case.kernel in done:
        continue
    done.add(case.kernel)
    module, name = case.kernel.split(":")
    function = getattr(importlib.import_module(module), name)
    fixed = {"num_warps", "num_stages"}
    constants = {**case.constants, **{key: value for key, value in case.configurations[0].items() if key not in fixed},
                 **{key: None for key, kind in case.signature.items() if kind is None}}
    constants |= {parameter.name: 1 for parameter in function.params if not parameter.do_not_specialize
                  and case.signature.get(parameter.name) in ("i32", "i64")}
    constants = {key: getattr(tl, value[3:]) if str(value).startswith("tl.") else value
                 for key, value in constants.items() if key in function.arg_names}
    signature = {key: "constexpr" if key in constants else case.signature[key] for key in function.arg_names}
    places = {key: (function.arg_names.index(key),) for key in constants}
    source = ASTSource(function, signature, {places[key]: value for key, value in constants.items()}, {})
    backend, context = make_backend(target), ir.context()
    options = backend.parse_options({})
    ir.load_dialects(context)
    backend.load_dialects(context)
    source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
print(len(done))
"""


def test_integers_equal_to_one_are_constants_that_every_kernel_takes() -> None:
    """A launch turns them into such: one head, one token, a rotation forwards."""
    result = subprocess.run([sys.executable, "-c", ONES], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len({case.kernel for case in aot.cases()})


def test_every_triton_operator_has_its_kernels_compiled() -> None:
    compiled = {case.kernel.split(":")[0] for case in aot.cases()}
    for operator, backends in registry.operators().items():
        if "triton" in backends:
            module = importlib.import_module(registry.implementation(operator, "triton").path.split(":")[0])
            kernels = {value.fn.__module__ for value in vars(module).values() if hasattr(value, "arg_names")}
            assert kernels & compiled, operator


def test_names_are_unique_and_configurations_differ() -> None:
    cases = aot.cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert len({tuple(sorted(c.items())) for c in case.configurations}) == len(case.configurations), case.name


def test_devices_without_hoppers_memory_are_launched_within_theirs() -> None:
    """sm_86, sm_89 and sm_120 have 99 KiB a program; from sm_120 on there are no wgmma and no tcgen05 to choose for."""
    from dist_metaxlm.kernels.attention.operator import launch

    assert aot.SHARED_MEMORY[80] == aot.SHARED_MEMORY[120] == 99 * 1024
    for kernel in ("forward", "backward_keys", "backward_queries"):
        for dropping in (False, True):
            of_120, of_80, of_90 = (
                [launch(kernel, width, torch.bfloat16, sm, dropping) for width in (32, 64, 128)] for sm in (120, 80, 90)
            )
            assert of_120[:2] == of_80[:2]
            assert of_120[2].step <= of_90[2].step
    assert launch("backward_keys", 128, torch.bfloat16, 103) == launch("backward_keys", 128, torch.bfloat16, 100)
