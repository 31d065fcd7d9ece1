"""What a command imports before it does anything: seconds that every start of every rank would pay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "transformers",
    "deepspeed",
    "megatron",
    "sympy",
    "matplotlib",
    "pandas",
    "sklearn",
    "scipy",
    "triton",
    "pyarrow",
    "datasketch",
    "mpi4py",
    "torch.utils.tensorboard",
)
HELP = """
import contextlib, io, runpy
for script in ("pretrain", "prepare", "evaluate", "convert", "plan", "benchmark", "study", "nodes/start", "nodes/preflight"):
    sys.argv = [script, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(f"launch/{script}.py", run_name="__main__")
from dist_metaxlm.cli.main import COMMANDS, run
for words in ([], *([name] for name in COMMANDS)):
    sys.argv = ["metaxlm", *words, "--help"]
    text = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        run()
    assert "usage: metaxlm " + " ".join(words) in text.getvalue(), words
"""
RANK = f"""
import torch
import dist_metaxlm.training.pretrain, dist_metaxlm.evaluation.probe, dist_metaxlm.evaluation.tasks.run
import dist_metaxlm.interop.folders, dist_metaxlm.study.study
assert not {{*{HEAVY!r}}} & sys.modules.keys(), {{*{HEAVY!r}}} & sys.modules.keys()
from dist_metaxlm.parallel.process_group import process_group
from dist_metaxlm.parallel.topology import detect_topology
with process_group(detect_topology(), torch.device("cpu")):
    from deepspeed.runtime.zero.utils import is_zero_supported_optimizer
    assert is_zero_supported_optimizer(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]))
    from deepspeed.runtime.zero.muon import original_muon
    assert original_muon.zeropower_via_newtonschulz5.__name__ == "zeropower_via_newtonschulz5"
"""


def loaded(code: str, names: tuple[str, ...]) -> set[str]:
    """Those of `names` that are imported after `code` has run in a process of its own."""
    report = f"\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))"
    result = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}{report}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    assert loaded(HELP, (*HEAVY, "torch", "numpy", "pydantic", "rich", "sentencepiece")) == set()


def test_plans_and_data_do_without_torch() -> None:
    modules = "preparation.prepare, dist_metaxlm.planning.plan, dist_metaxlm.recipe.load, dist_metaxlm.reporting.page"
    assert loaded(f"import dist_metaxlm.{modules}", (*HEAVY, "torch")) == set()


def test_a_rank_imports_the_heavy_where_it_uses_it_and_builds_nothing() -> None:
    muon = "deepspeed.runtime.zero.muon.muon_optimizer"
    unused = (
        "torch.utils.cpp_extension",
        "setuptools",
        "torch._inductor.compile_fx",
        "megatron",
        "transformers",
        "matplotlib",
        "sklearn",
        "dist_metaxlm.kernels.attention.cuda",
    )
    assert loaded(RANK, (*unused, muon)) == {muon}


def test_tensor_parallel_groups_do_not_import_the_compiler() -> None:
    """megatron-core applies torch.compile to functions that no layer here calls; Inductor would cost a rank four seconds."""
    code = """
import contextlib, torch
from dist_metaxlm.parallel.groups import form_groups
from dist_metaxlm.parallel.process_group import process_group
from dist_metaxlm.parallel.topology import detect_topology
compiling = torch.compile
with process_group(detect_topology(), torch.device("cpu")):
    with contextlib.suppress(RuntimeError):  # two tensor ranks of one process: refused after the import
        form_groups(2, 1, torch.device("cpu"))
assert torch.compile is compiling
"""
    layers = "megatron.core.tensor_parallel.layers"
    assert loaded(code, (layers, "torch._inductor.compile_fx")) == {layers}
