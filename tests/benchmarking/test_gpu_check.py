"""The whole check of a GPU: its sections, its budget of time, and what it makes of their results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_metaxlm.benchmarking import gpu_check
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_what_the_issue_names_is_run() -> None:
    named = [section.name for section in gpu_check.sections("cuda")]
    assert named == ["kernels", "throughput xlmr-base", "throughput xlmr-large", "throughput modern-base", "configurations"]
    for section in gpu_check.sections("cuda")[1:4]:
        overrides = [word for word in section.arguments if "=" in word]
        assert load_recipe(section.arguments[2], overrides).phases["cross"].sequence_length == 512


def test_verdicts_of_sections_become_the_verdict() -> None:
    calls: list[list[str]] = []
    outputs = [(1, '{"wrong": ["head"], "slower": []}', ""), (-9, "", "out of memory")]

    def run(arguments: list[str], seconds: float) -> tuple[int, str, str]:
        calls.append(arguments)
        assert seconds > gpu_check.GRACE
        return outputs[len(calls) - 1]

    lines: list[str] = []
    result = gpu_check.check_gpu("cpu", 1.0, lines.append, run)
    assert result["wrong"] == ["kernels: head"]
    assert result["slower"] == []
    assert result["unfinished"] == ["throughput quickstart: exit code -9: out of memory"]
    assert lines[0].startswith("kernels: wrong after")
    budgets = [float(call[call.index("--seconds") + 1]) for call in calls]
    assert budgets == pytest.approx([30, 60], abs=1)  # the first left its time to the second


def test_what_no_time_is_left_for_is_not_well() -> None:
    result = gpu_check.check_gpu("cpu", 0.0, lambda _: None, lambda *_: (0, json.dumps({}), ""))
    assert result["unfinished"] == ["throughput quickstart: no time was left"]
    assert result["sections"][0]["verdict"] == "well"


def test_a_section_far_beyond_its_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "SCRIPT", ROOT / "tests" / "benchmarking" / "test_gpu_check.py")

    def late(*arguments: object, **named: object) -> None:
        raise subprocess.TimeoutExpired("command", 7.0)

    monkeypatch.setattr(gpu_check.subprocess, "run", late)
    assert gpu_check._run(["kernels"], 7.0) == (-1, "", "ended after 7 s")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="no CUDA device here"):
        gpu_check.check_gpu("cuda", 1.0, lambda _: None)


def test_kernels_need_torch_and_triton_alone() -> None:
    """The packages that PyTorch's CUDA wheel does not bring are hidden; the command's modules import all the same."""
    code = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"deepspeed", "megatron", "transformers", "sentencepiece", "pydantic", "yaml", "mpi4py"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import dist_metaxlm.benchmarking.kernels, dist_metaxlm.benchmarking.configurations, dist_metaxlm.benchmarking.gpu_check
from dist_metaxlm.benchmarking.kernel_cases import kernel_cases
import torch
kernel_cases(True, torch.device("cpu"))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
