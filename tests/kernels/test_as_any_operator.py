"""The operators under activation checkpointing, autocast and torch.compile, as torch's own behave there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.head.linear_cross_entropy import linear_cross_entropy
from dist_metaxlm.kernels.pointwise import activations, norm
from dist_metaxlm.kernels.pointwise.dropout import DropoutMask

MASK = DropoutMask(torch.arange(4), 77, 0.25)


def layer(branch: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One of everything between two matrix products."""
    summed, normed = norm.add_norm(branch, residual, weight, None, 1e-5, MASK)
    return norm.add(activations.geglu(normed, summed), activations.bias_gelu(summed, weight), MASK)


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((4, 12), (4, 12), (12,))]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_activation_checkpointing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(registry.VARIABLE, backend)
    tensors = inputs()
    plain = torch.autograd.grad(layer(*tensors).square().sum(), tensors)
    again = torch.autograd.grad(checkpoint(layer, *tensors, use_reentrant=False).square().sum(), tensors)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_torch_compile_without_a_break() -> None:
    tensors = inputs()
    expected = layer(*tensors)  # the first call imports the implementations
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), expected)


def test_autocast_runs_the_head_in_its_dtype() -> None:
    states, _, bias = inputs()
    weight, targets = torch.randn(12, 12).requires_grad_(), torch.tensor([0, 3, 11, 5])
    with torch.autocast("cpu", torch.bfloat16):
        losses = linear_cross_entropy(states, weight, bias, targets)
    assert losses.dtype == torch.float32
    gradients = torch.autograd.grad(losses.sum(), (states, weight, bias))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    rounded = F.cross_entropy(F.linear(*(t.bfloat16().float() for t in (states, weight, bias))), targets, reduction="none")
    torch.testing.assert_close(losses, rounded, atol=0.05, rtol=0.02)
