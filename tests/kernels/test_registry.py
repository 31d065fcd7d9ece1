from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", {})
    monkeypatch.setattr(registry, "_LOGGED", {})
    monkeypatch.setattr(registry, "_recipe_force", None)
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(registry, "_REASONS", {})


def square(operator: str = "square") -> None:
    """An operator with two backends; the faster one only supports an even number of elements."""
    registry.register(operator, "reference", "torch:square")
    registry.register(operator, "triton", "torch:mul", lambda: None, lambda x: x.numel() % 2 == 0)


def test_a_cpu_tensor_takes_the_reference() -> None:
    square()
    assert registry.choose("square", torch.ones(2)) is torch.square
    assert registry.operators() == {"square": ["triton", "reference"]}
    assert registry.choices() == {"square": "reference"}


def test_a_device_takes_the_fastest_that_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    square()
    monkeypatch.setattr(registry, "_on_cuda", lambda arguments: True)
    assert registry.choose("square", torch.ones(2)) is torch.mul
    assert registry.choose("square", torch.ones(3)) is torch.square


def test_force_by_variable_and_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    square()
    registry.force("triton")
    registry.force("reference")
    registry.force("triton")
    assert registry.choose("square", torch.ones(2)) is torch.mul
    monkeypatch.setenv(registry.VARIABLE, "reference")
    assert registry.choose("square", torch.ones(2)) is torch.square
    monkeypatch.setenv(registry.VARIABLE, "auto")
    registry.force("auto")
    assert registry.choose("square", torch.ones(2)) is torch.square


def test_a_forced_backend_that_the_operator_lacks_leaves_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    square()
    monkeypatch.setenv(registry.VARIABLE, "cuda")
    assert registry.choose("square", torch.ones(2)) is torch.square


def test_refusals_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    square()
    registry.register("other", "reference", "torch:square")
    registry.register("other", "triton", "torch:mul", lambda: "there is no CUDA device")
    monkeypatch.setenv(registry.VARIABLE, "triton")
    with pytest.raises(UserError, match=r"DIST_METAXLM_KERNELS=triton cannot run square on torch.float32 .3. on cpu"):
        registry.choose("square", torch.ones(3))
    with pytest.raises(UserError, match="cannot run other here: there is no CUDA device; set it to auto or reference"):
        registry.choose("other", torch.ones(2))
    monkeypatch.setenv(registry.VARIABLE, "opencl")
    with pytest.raises(UserError, match="opencl names no kernels; use auto, cuda, triton, reference"):
        registry.choose("square", torch.ones(2))


def test_a_recipe_that_forces_what_nothing_here_can_run_is_refused_at_once() -> None:
    registry.register("other", "triton", "torch:mul", lambda: "there is no CUDA device")
    with pytest.raises(UserError, match=r"training.kernels=triton cannot run here: there is no CUDA device"):
        registry.force("triton")
    with pytest.raises(UserError, match=r"training.kernels=cuda cannot run here: no operator has such kernels"):
        registry.force("cuda")


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    square()
    with caplog.at_level(logging.INFO, "dist_metaxlm.kernels"):
        for _ in range(3):
            registry.choose("square", torch.ones(2))
    assert [record.getMessage() for record in caplog.records] == [
        "kernels: square runs on reference (triton: not for these arguments)"
    ]


def test_choices_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LOG", logging.Logger("apart"))
    lines: list[str] = []
    registry.tell(lines.append)
    square()
    for _ in range(2):
        registry.choose("square", torch.ones(2))
    assert lines == ["kernels: square runs on reference (triton: not for these arguments)"]


def test_a_machine_without_triton_or_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    assert registry.missing_triton() == "the package triton is not installed"
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert registry.missing_triton() == registry.missing_cuda() == "there is no CUDA device"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert registry.missing_triton() is None
    assert registry.on_device(torch.ones(1))


def on_a_device(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


def test_a_device_that_triton_cannot_drive_gets_the_references_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in an image without a compiler; where this machine has a driver's library, the compiler is what is missing."""
    pytest.importorskip("triton")
    on_a_device(monkeypatch, (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    reason = registry.missing_triton()
    assert reason is not None
    assert reason.startswith("Triton cannot build its driver, which needs gcc")
    registry.register("other", "reference", "torch:square")
    registry.register("other", "triton", "torch:mul")
    monkeypatch.setattr(registry, "_on_cuda", lambda arguments: True)
    assert registry.choose("other", torch.ones(2)) is torch.square


def test_devices_that_no_kernel_was_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_device(monkeypatch, (7, 5))
    assert registry.missing_triton() == "the device is older than compute capability 8.0"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert registry.missing_triton() == "the kernels were never compiled for AMD devices"
