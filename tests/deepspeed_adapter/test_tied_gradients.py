"""The tied gradient is summed in fp32 wherever an optimiser keeps it; whole pipelines are in tests/distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dist_metaxlm.deepspeed_adapter import gradients
from dist_metaxlm.deepspeed_adapter.gradients import add_in_fp32, sum_tied_gradient


@pytest.fixture(autouse=True)
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two holders with the same gradient."""
    monkeypatch.setattr(gradients.dist, "all_reduce", lambda tensor, group: tensor.mul_(2))


def weight(**kept: torch.Tensor) -> Any:
    found: Any = torch.nn.Parameter(torch.zeros(3))
    found.ds_pipe_replicated = False
    for name, value in kept.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize("name", ["_hp_grad", "grad_accum", "grad"])
def test_it_is_summed_where_it_is(name: str) -> None:
    one = weight(**{name: torch.tensor([1.0, 2.0, 3.0])})
    sum_tied_gradient(one, None)
    assert getattr(one, name).tolist() == [2.0, 4.0, 6.0]


def test_micro_batches_of_a_copy_are_added_in_fp32_and_forgotten_after_the_step() -> None:
    copy: Any = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    copy.ds_pipe_replicated = True
    for value in (256.0, 1.0):  # 257 is no number of bf16
        copy.grad = torch.full((2,), value, dtype=torch.bfloat16)
        add_in_fp32(copy)
    assert copy.grad is None
    assert copy.grad_accum.tolist() == [257.0, 257.0]
    total = copy.grad_accum
    sum_tied_gradient(copy, None)
    assert total.tolist() == [514.0, 514.0]
    assert copy.grad_accum is None


def test_a_holder_without_a_gradient_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(gradients.dist, "all_reduce", lambda tensor, group: sent.append(tensor))
    sum_tied_gradient(weight(), None)
    assert [tensor.tolist() for tensor in sent] == [[0.0] * 3]
    assert sent[0].dtype == torch.float32
