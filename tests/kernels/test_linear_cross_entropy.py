from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dist_metaxlm.kernels import linear_cross_entropy as module
from dist_metaxlm.kernels.linear_cross_entropy import linear_cross_entropy


def inputs(rows: int, vocabulary: int, dtype: torch.dtype = torch.float64, scale: float = 1.0):
    generator = torch.Generator().manual_seed(1)
    states = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return states, weight, bias, torch.randint(0, vocabulary, (rows,), generator=generator)


@pytest.fixture(params=[1, 3, 256], ids=["chunk-1", "chunk-3", "one-chunk"])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", request.param)
    return request.param


@pytest.mark.parametrize("reduce", ["rows", "sum", "weighted"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(chunk_rows: int, reduce: str, with_bias: bool) -> None:
    states, weight, bias, targets = inputs(7, 11)
    row_weights = torch.linspace(-1, 2, 7, dtype=torch.float64)

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        losses = linear_cross_entropy(tensors[0], tensors[1], tensors[2] if with_bias else None, targets, 0)
        return {"rows": losses, "sum": losses.sum() * 0.3, "weighted": (losses * row_weights).sum()}[reduce]

    # A second backward forms the gradients anew, in another order of rounding: hence the tolerance between the two.
    tensors = (states, weight, bias) if with_bias else (states, weight)
    assert torch.autograd.gradcheck(loss, tensors, nondet_tol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["flat", "peaked"])
def test_equals_plain_cross_entropy_in_fp32(chunk_rows: int, scale: float) -> None:
    states, weight, bias, targets = inputs(50, 97, torch.float32, scale)
    ours = linear_cross_entropy(states, weight, bias, targets, 0)
    gradients = torch.autograd.grad(ours.sum() / 50, (states, weight, bias))
    plain = F.cross_entropy(F.linear(states, weight, bias), targets, reduction="none")
    expected = torch.autograd.grad(plain.mean(), (states, weight, bias))
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)


def test_bf16_is_as_near_to_fp64_as_its_inputs_allow(chunk_rows: int) -> None:
    states, weight, bias, targets = inputs(50, 97, torch.bfloat16)
    losses = linear_cross_entropy(states, weight, bias, targets, 0)
    assert losses.dtype == torch.float32
    gradients = torch.autograd.grad(losses.sum(), (states, weight, bias))
    exact = [tensor.detach().double().requires_grad_() for tensor in (states, weight, bias)]
    reference = F.cross_entropy(F.linear(*exact), targets, reduction="none")
    expected = torch.autograd.grad(reference.sum(), exact)
    torch.testing.assert_close(losses.double(), reference, atol=0.05, rtol=0.02)
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - other).norm() < 0.02 * other.norm()


def test_a_second_backward_gives_the_same() -> None:
    states, weight, bias, targets = inputs(7, 11)
    total = linear_cross_entropy(states, weight, bias, targets).sum() * 2
    first = torch.autograd.grad(total, (states, weight, bias), retain_graph=True)
    second = torch.autograd.grad(total, (states, weight, bias))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_only_what_is_asked_for_is_formed() -> None:
    states, weight, bias, targets = inputs(7, 11)
    losses = linear_cross_entropy(states.detach(), weight, bias.detach(), targets)
    losses.sum().backward()
    assert weight.grad is not None
    assert states.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(states, weight, bias, targets).requires_grad
    assert linear_cross_entropy(states[:0], weight, bias, targets[:0]).shape == (0,)
    empty = torch.autograd.grad(linear_cross_entropy(states[:0], weight, bias, targets[:0]).sum(), weight)
    assert not empty[0].any()


def test_logits_of_one_chunk_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    plain = torch.addmm

    def counted(*args, out: torch.Tensor, **kwargs) -> torch.Tensor:
        sizes.append(out.shape[0])
        return plain(*args, out=out, **kwargs)

    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 2)
    monkeypatch.setattr(torch, "addmm", counted)
    states, weight, bias, targets = inputs(10, 11, torch.float32)
    linear_cross_entropy(states, weight, bias, targets, chunk_bytes=4 * 11 * 4)
    assert sizes == [4, 4, 2]
