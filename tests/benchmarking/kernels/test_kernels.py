"""The verdicts of `launch/benchmark.py kernels`, and the command as far as a machine without a GPU goes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_metaxlm.benchmarking.kernels import kernels
from dist_metaxlm.benchmarking.kernels.cases import KernelCase, kernel_cases
from dist_metaxlm.benchmarking.kernels.peers import made_late
from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry

ROOT = Path(__file__).resolve().parents[3]


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in kernel_cases(True, torch.device("cpu"))} >= {
        "linear_cross_entropy",
        "norm",
        "add_norm",
        "add",
        "embed_norm",
        "bias_gelu",
        "geglu",
        "rotate",
    }


def test_rms_norm_is_measured_beside_torchs() -> None:
    cases = {case.name: case for case in kernel_cases(True, torch.device("cpu")) if "RMSNorm" in case.name}
    assert {case.operator for case in cases.values()} == {"norm", "add_norm", "embed_norm"}
    rows = {row["name"]: row for row in kernels.measure_kernels("cpu", 1, ["RMSNorm"])["cases"]}
    assert rows.keys() == cases.keys()
    assert {row["verdict"] for row in rows.values()} == {"ok"}
    assert "torch" in rows["RMSNorm"]["milliseconds"]


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> KernelCase:
    """An operator whose faster backend is `kernels_under_test.fast`, set by each test."""
    monkeypatch.setattr(registry, "_REGISTRY", {})
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    registry.register("double", "reference", f"{__name__}:reference")
    registry.register("double", "triton", f"{__name__}:fast", lambda: None, lambda *arguments: True)
    monkeypatch.setattr(registry, "_on_cuda", lambda arguments: True)
    return KernelCase(
        "doubling",
        "double",
        ((64, 64),),
        lambda x: registry.choose("double", x)(x),
        (8192, 8192),
        peers={"broken": broken, "missing": made_late(lambda: importlib.import_module("none"))},
    )


def reference(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def broken(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("fast", "verdict"),
    [
        (lambda x: x * 2.01, "wrong"),
        (lambda x: sum((x @ x.detach() * 0 for _ in range(30)), x * 2), "slower"),
        (lambda x: x * float("nan"), "wrong"),
    ],
    ids=["wrong", "slower", "nan"],
)
def test_verdicts(doubling: KernelCase, fast: object, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_load", lambda path: fast if path.endswith("fast") else reference)
    row = kernels._measure(doubling, torch.device("cpu"), torch.float32, 3)
    assert row["verdict"] == verdict
    assert row["peers_that_failed"] == {"broken": "RuntimeError: no compiler", "missing": "not here: No module named 'none'"}
    assert set(row["milliseconds"]) == {"ours", "reference"}
    assert row["forward_terabytes_per_second"] > 0


def test_one_that_fails_does_not_hide_the_others(doubling: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def fast(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 8:
            raise RuntimeError("Triton found no C compiler\nmore of it")
        return x * 2

    cases = [replace(doubling, name="failing", shapes=((8, 64),)), doubling]
    monkeypatch.setattr(registry, "_load", lambda path: fast if path.endswith("fast") else reference)
    monkeypatch.setattr(kernels, "kernel_cases", lambda small, device: cases)
    kept: list[int] = []
    found = kernels.measure_kernels("cpu", 2, seconds=0.0, keep=lambda so_far: kept.append(len(so_far["cases"])))
    assert [row["verdict"] == "failed" for row in found["cases"]] == [True, False]
    assert found["unfinished"] == ["failing: RuntimeError: Triton found no C compiler"]
    assert "in fast" in found["cases"][0]["traceback"]
    assert found["cases"][1]["peers_that_failed"] == dict.fromkeys(("broken", "missing"), "no time was left")
    assert kept == [1, 2]
    assert kernels.line(found["cases"][0]) == "failing: failed, RuntimeError: Triton found no C compiler"
    with pytest.raises(UserError, match="--only tripling: no operator's case"):
        kernels.measure_kernels("cpu", 1, ["tripling"])


def test_a_gpu_that_runs_references_alone_has_not_checked_its_kernels(
    doubling: KernelCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all would be well on a machine where Triton cannot compile."""
    monkeypatch.setattr(registry, "_REASONS", {(doubling.operator, "triton"): "there is no gcc"})
    row, gpu = {"backend": "reference"}, torch.device("cuda")
    assert kernels._without_kernel(doubling, row, gpu) == [f"{doubling.name}: no kernel ran, triton: there is no gcc"]
    assert kernels._without_kernel(doubling, row, torch.device("cpu")) == []
    assert kernels._without_kernel(doubling, {"backend": "triton"}, gpu) == []


def test_the_command(tmp_path: Path) -> None:
    output = tmp_path / "kernels.json"
    result = subprocess.run(
        [
            sys.executable,
            "launch/benchmark.py",
            "kernels",
            "--device",
            "cpu",
            "--repeats",
            "1",
            "--only",
            "LayerNorm",
            "--json",
            "--output",
            str(output),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads(output.read_text(encoding="utf-8"))
    assert found["wrong"] == found["slower"] == []
    assert {row["backend"] for row in found["cases"]} == {"reference"}
    assert {"date", "device", "commit"} <= found["environment"].keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so() -> None:
    with pytest.raises(UserError, match="no CUDA device here"):
        kernels.measure_kernels("cuda", 1)
