"""The whole check of a GPU: its sections, its budget of time, and what it makes of their results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dist_metaxlm.benchmarking.kernels import gpu_check
from dist_metaxlm.benchmarking.kernels.cases import kernel_cases
from dist_metaxlm.benchmarking.kernels.partial import finished, keep_partial_results, partial_result
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[3]


def test_what_the_issue_names_is_run() -> None:
    named = [section.name for section in gpu_check.sections("cuda")]
    assert named == [
        "kernels, head",
        "kernels, attention",
        "kernels, others",
        "throughput xlmr-base",
        "throughput xlmr-large",
        "throughput modern-base",
        "configurations",
    ]
    for section in gpu_check.sections("cuda")[3:6]:
        overrides = [word for word in section.arguments if "=" in word]
        assert load_recipe(section.arguments[2], overrides).phases["cross"].sequence_length == 512


def test_every_case_is_measured_by_one_section() -> None:
    for case in kernel_cases(True, torch.device("cpu")):
        groups = [name for name, parts in gpu_check.KERNELS.items() if any(part in case.name for part in parts)]
        assert len(groups) == 1, case.name


def test_verdicts_of_sections_become_the_verdict() -> None:
    calls: list[list[str]] = []
    outputs = [(1, '{"wrong": ["head"], "slower": []}', ""), (-9, "", "a trace\nout of memory")]

    def run(arguments: list[str], seconds: float) -> tuple[int, str, str]:
        calls.append(arguments)
        assert seconds > gpu_check.GRACE
        keep_partial_results(arguments[arguments.index("--output") + 1])({"steps": len(calls), "slower": ["early"]})
        return outputs[len(calls) - 1]

    lines: list[str] = []
    result = gpu_check.check_gpu("cpu", 1.0, lines.append, run)
    assert result["wrong"] == ["kernels: head"]
    assert result["unfinished"] == ["throughput quickstart: exit code -9: out of memory"]
    # What the second had measured before it died is kept, and what it died of.
    assert result["slower"] == ["throughput quickstart: early"]
    assert result["sections"][1]["result"]["steps"] == 2
    assert result["sections"][1]["errors"] == "a trace\nout of memory"
    assert lines[0].startswith("kernels: wrong after")
    budgets = [float(call[call.index("--seconds") + 1]) for call in calls]
    assert budgets == pytest.approx([30, 60], abs=1)  # the first left its time to the second


def test_what_no_time_is_left_for_is_not_well() -> None:
    result = gpu_check.check_gpu("cpu", 0.0, lambda _: None, lambda *_: (0, json.dumps({}), ""))
    assert result["unfinished"] == ["throughput quickstart: no time was left"]
    assert result["sections"][0]["verdict"] == "well"


def test_what_is_kept_goes_when_the_result_is_there(tmp_path: Path) -> None:
    output = str(tmp_path / "result.json")
    assert partial_result(Path(output)) is None
    for steps in (1, 2):
        keep_partial_results(output)({"steps": steps})
    assert partial_result(Path(output)) == {"steps": 2}
    finished(output)
    assert list(tmp_path.iterdir()) == []
    keep_partial_results(None)({"steps": 3})


def test_a_section_far_beyond_its_time_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text("import sys, time\nprint('begun', file=sys.stderr, flush=True)\ntime.sleep(60)\n", encoding="utf-8")
    assert gpu_check.runner([sys.executable, str(script)])(["kernels"], 1.0) == (-1, "", "begun\n\nended after 1 s")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="no CUDA device here"):
        gpu_check.check_gpu("cuda", 1.0, lambda _: None, lambda *_: (0, "{}", ""))


def test_what_the_commands_need() -> None:
    """The packages that PyTorch's CUDA wheel does not bring are hidden: `kernels` imports all the same, and `throughput`
    with the five that it says it needs."""
    code = """
import sys
hidden = {"deepspeed", "megatron", "mpi4py", "sentencepiece", "rich", "pydantic", "yaml", "transformers", "safetensors"}
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
from dist_metaxlm.benchmarking.kernels import configurations, gpu_check, kernels
from dist_metaxlm.benchmarking.kernels.cases import kernel_cases
import torch
kernel_cases(True, torch.device("cpu"))
hidden -= {"pydantic", "yaml", "transformers", "safetensors"}
import dist_metaxlm.benchmarking.training.report
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
