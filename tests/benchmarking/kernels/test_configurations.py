"""Every configuration of a kernel beside the one in use, tried in Triton's interpreter."""

from __future__ import annotations

import importlib

import pytest

from dist_metaxlm.benchmarking.kernels import configurations as module
from dist_metaxlm.benchmarking.kernels.cases import kernel_cases
from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels.aot import compile as aot
from dist_metaxlm.kernels.attention import operator as attention_operator


def test_every_list_is_measured() -> None:
    lists = {
        kernel: name
        for name in (
            "head.linear_cross_entropy_triton",
            "pointwise.norm_kernels",
            "pointwise.activations_triton",
            "pointwise.rotary_triton",
        )
        for kernel in importlib.import_module(f"dist_metaxlm.kernels.{name}").CONFIGURATIONS
    }
    assert lists == {kernel: name for kernel, (name, _, _) in module.LISTS.items()}
    cases = {case.name for case in kernel_cases(True, module.torch.device("cpu"))}
    assert {case for _, case, _ in module.LISTS.values()} | set(module.ATTENTION_CASES) <= cases
    assert {case.name.split(",")[0] for case in aot.cases()} >= {f"attention {kernel}" for kernel in module.ATTENTION}


def test_a_list_is_timed_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    rotary = importlib.import_module("dist_metaxlm.kernels.pointwise.rotary_triton")
    before = {kernel: list(found) for kernel, found in rotary.CONFIGURATIONS.items()}
    extra = {**before["turn_heads"][0], "TOKENS": "none"}
    monkeypatch.setitem(rotary.CONFIGURATIONS, "turn_heads", [*before["turn_heads"], extra])
    result = module.measure_configurations("cpu", 1, ["turn_heads"])
    assert result["interpreted"]
    (row,) = result["kernels"]
    assert (row["kernel"], row["pass"]) == ("turn_heads", "forward")
    assert [found["settings"] for found in row["configurations"]] == [*before["turn_heads"], extra]
    assert row["configurations"][0]["in_use"]
    assert sum(found["in_use"] for found in row["configurations"]) == 1
    assert row["configurations"][-1]["milliseconds"] is None
    assert row["configurations"][-1]["problem"]
    assert row["best"] in before["turn_heads"]
    assert row["gain"] >= 0
    assert rotary.CONFIGURATIONS["turn_heads"][:-1] == before["turn_heads"]
    text = module.table(result)
    assert text.startswith("interpreted on a CPU")
    assert text.count("best") == text.count("in use") == 1


def test_after_the_time_only_what_is_in_use_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (row,) = module.measure_configurations("cpu", 1, ["turn_heads"], seconds=0.0)["kernels"]
    first, *others = row["configurations"]
    assert first["milliseconds"] > 0
    assert {found["problem"] for found in others} == {"no time was left"}
    assert row["gain"] == 0


def test_launches_of_attention_are_tried_and_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(module, "LAUNCHES", [(32, 4, 1)])
    plain = attention_operator.launch
    case = next(case for case in kernel_cases(True, module.torch.device("cpu")) if case.name == module.ATTENTION_CASES[0])
    candidates = module._attention_candidates("backward_keys", case, module.torch.bfloat16)
    assert [candidate.in_use for candidate in candidates] == [True, False]
    with candidates[1].using():
        assert attention_operator.launch("backward_keys", 32, module.torch.bfloat16, 90).step == 32
        assert attention_operator.launch("forward", 32, module.torch.bfloat16, 90).step == 64
    assert attention_operator.launch is plain


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(UserError, match="no kernel with configurations"):
        module.measure_configurations("cpu", 1, ["nothing"])
