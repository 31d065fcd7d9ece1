"""Norm, residual sum, dropout and lookup: Triton kernels in the interpreter against the PyTorch references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.pointwise import norm as operators
from dist_metaxlm.kernels.pointwise.dropout import DropoutMask

pytest.importorskip("triton")
from dist_metaxlm.kernels.pointwise import norm_triton

EPS = 1e-5


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(registry.VARIABLE, "triton")


def tensor(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def a_mask(rows: int, salt: int = -(2**62) - 12345) -> DropoutMask:
    return DropoutMask(torch.arange(rows) * 977 + 2**41, salt, 0.3)


def against_reference(name: str, tensors: list[torch.Tensor | None], *others: object) -> None:
    """Same results and gradients, the upstream gradients being random."""
    grown = [t for t in tensors if t is not None and t.is_floating_point()]
    outcomes = []
    for form in (getattr(norm_triton, name), getattr(operators, f"reference_{name}")):
        results = form(*tensors, *others)
        results = results if isinstance(results, tuple) else (results,)
        upstream = [tensor(*result.shape, seed=7 + i, dtype=result.dtype).detach() for i, result in enumerate(results)]
        outcomes.append((*results, *torch.autograd.grad(results, grown, upstream)))
    for ours, theirs in zip(*outcomes, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


# 12 channels are padded to 16, 16 are not; five rows are no multiple of the programs.
@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("dropped", [True, False], ids=["dropout", "plain"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no-bias"])
def test_norm_and_add_norm(width: int, dropped: bool, biased: bool) -> None:
    mask = a_mask(5) if dropped else None
    weight, bias = tensor(width, seed=3), tensor(width, seed=4) if biased else None
    against_reference("norm", [tensor(5, width), weight, bias], EPS, mask)
    against_reference("add_norm", [tensor(5, width), tensor(5, width, seed=2), weight, bias], EPS, mask)


@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("dropped", [True, False], ids=["dropout", "plain"])
def test_rms_norm(width: int, dropped: bool) -> None:
    mask, weight = a_mask(5) if dropped else None, tensor(width, seed=3)
    against_reference("norm", [tensor(5, width), weight, None], EPS, mask, True)
    against_reference("add_norm", [tensor(5, width), tensor(5, width, seed=2), weight, None], EPS, mask, True)
    tokens, table = torch.tensor([3, 3, 0, 6, 5]), tensor(7, width)
    against_reference("embed_norm", [tokens, table, None, None, weight, None], EPS, mask, True)


def test_the_reference_of_rms_norm_is_its_definition() -> None:
    """A row over the root of its mean square: arXiv 1910.07467, equation 4, with an epsilon under the root."""
    states, weight = tensor(4, 12, dtype=torch.float64), tensor(12, seed=3, dtype=torch.float64)
    upstream = tensor(4, 12, seed=5, dtype=torch.float64)
    wanted = states / torch.sqrt(states.square().sum(-1, keepdim=True) / 12 + EPS) * weight
    found = operators.reference_norm(states, weight, None, EPS, None, True)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(*(torch.autograd.grad(form, (states, weight), upstream) for form in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other)
    half = operators.reference_norm(states.bfloat16(), weight.bfloat16(), None, EPS, None, True)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), wanted, atol=0.03, rtol=0.03)
    with pytest.raises(AssertionError, match="has no bias"):
        operators.reference_norm(states, weight, weight, EPS, None, True)
    with pytest.raises(AssertionError, match="has no bias"):
        norm_triton.norm(states, weight, weight, EPS, None, True)


@pytest.mark.parametrize("rows", [1, 5])
def test_add(rows: int) -> None:
    against_reference("add", [tensor(rows, 12), tensor(rows, 12, seed=2)], a_mask(rows))


@pytest.mark.parametrize("positioned", [True, False], ids=["positions", "tokens-only"])
@pytest.mark.parametrize("dropped", [True, False], ids=["dropout", "plain"])
def test_embed_norm(positioned: bool, dropped: bool) -> None:
    tokens, positions = torch.tensor([3, 3, 0, 6, 5]), torch.tensor([0, 1, 2, 0, 1])
    table, places = tensor(7, 12), tensor(4, 12, seed=2)
    where = (positions, places) if positioned else (None, None)
    arguments = [tokens, table, *where, tensor(12, seed=3), tensor(12, seed=4)]
    against_reference("embed_norm", arguments, EPS, a_mask(5) if dropped else None)


def test_several_rows_a_program_and_wide_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, configurations in norm_triton.CONFIGURATIONS.items():
        monkeypatch.setitem(norm_triton.CONFIGURATIONS, name, [{**configurations[0], "ROWS": 4}])
    arguments = [tensor(6, 12), tensor(6, 12, seed=2), tensor(12, seed=3), tensor(12, seed=4)]
    against_reference("add_norm", arguments, EPS, a_mask(6))
    against_reference("add_norm", [*arguments[:3], None], EPS, a_mask(6), True)
    monkeypatch.undo()
    monkeypatch.setattr(norm_triton, "NARROW", 8)
    against_reference("add_norm", arguments, EPS, a_mask(6))


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("salt", [0, 5, 2**40 + 16, -1, -(2**63)])
def test_the_mask_is_the_counters_bit_for_bit(rate: float, salt: int) -> None:
    mask = DropoutMask(torch.tensor([0, 1, 2**31, 2**40 + 3, 2**62 + 1]), salt, rate)
    ones = torch.ones(5, 64)
    kept = norm_triton.add(ones, torch.zeros(5, 64), mask)
    assert torch.equal(kept != 0, mask.stays(64))
    torch.testing.assert_close(kept, mask.apply(ones))


def gradcheck(function: Callable[..., object], *tensors: torch.Tensor) -> None:
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True, atol=1e-4, rtol=1e-3)


def test_gradcheck() -> None:
    double = torch.float64
    x, residual, weight, bias = (
        tensor(*shape, seed=i, dtype=double) for i, shape in enumerate([(3, 6), (3, 6), (6,), (6,)])
    )
    gradcheck(lambda *t: operators.norm(*t, EPS, a_mask(3)), x, weight, bias)
    gradcheck(lambda *t: operators.add_norm(*t, EPS, a_mask(3)), x, residual, weight, bias)
    gradcheck(lambda *t: operators.add(*t, a_mask(3)), x, residual)
    gradcheck(lambda *t: operators.add_norm(*t, None, EPS, a_mask(3), rms=True), x, residual, weight)
    tokens, positions = torch.tensor([1, 1, 2]), torch.tensor([0, 1, 0])
    gradcheck(
        lambda table, places, *t: operators.embed_norm(tokens, table, positions, places, *t, EPS, None),
        x,
        residual,
        weight,
        bias,
    )
    gradcheck(
        lambda table, *t: operators.embed_norm(tokens, table, None, None, *t, None, EPS, a_mask(3), rms=True), x, weight
    )


def test_only_the_norm_or_only_the_sum_is_used_and_no_rows() -> None:
    arguments = tensor(4, 12), tensor(4, 12, seed=2), tensor(12, seed=3), None
    for index in (0, 1):
        ours, theirs = (
            torch.autograd.grad(form(*arguments, EPS, None)[index].sum(), arguments[: 2 + index])
            for form in (norm_triton.add_norm, operators.reference_add_norm)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    weight = tensor(12, seed=3)
    empty = operators.norm(tensor(0, 12), weight, None, EPS)
    assert empty.shape == (0, 12)
    assert not torch.autograd.grad(empty.sum(), weight)[0].any()


@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
def test_bf16_states_with_fp32_parameters(rms: bool) -> None:
    states, weight = tensor(4, 12, dtype=torch.bfloat16), tensor(12, seed=3)
    normed = operators.norm(states, weight, None, EPS, rms=rms)
    assert normed.dtype == torch.bfloat16
    exact = operators.reference_norm(states.float(), weight, None, EPS, None, rms)
    # The interpreter truncates to bf16 where a device rounds: one unit in the last place.
    torch.testing.assert_close(normed.float(), exact, atol=0.02, rtol=0.01)


def test_what_a_cpu_takes_and_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operators.accepts(torch.ones(2, 12))
    assert not operators.accepts(torch.ones(2, operators.WIDEST + 1))
    monkeypatch.delenv(registry.VARIABLE)
    assert registry.chosen("add_norm", torch.ones(2, 12), torch.ones(2, 12)).backend == "reference"
