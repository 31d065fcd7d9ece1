"""GELU with bias and with gate, and the rotation: Triton kernels in the interpreter against the PyTorch references."""

from __future__ import annotations

import pytest
import torch

from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.pointwise import activations, rotary

pytest.importorskip("triton")
from dist_metaxlm.kernels.pointwise import activations_triton


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(registry.VARIABLE, "triton")
    for name, configurations in activations_triton.CONFIGURATIONS.items():
        small = {key: value for key, value in (("ROWS", 2), ("BLOCK", 16)) if key in configurations[0]}
        monkeypatch.setitem(activations_triton.CONFIGURATIONS, name, [small])


def tensor(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("width", [16, 37])
@pytest.mark.parametrize("name", ["bias_gelu", "geglu"])
def test_as_the_reference(name: str, rows: int, width: int) -> None:
    states = tensor(rows, width, dtype=torch.float32, scale=3.0)
    other = tensor(*((width,) if name == "bias_gelu" else (rows, width)), seed=2, dtype=torch.float32)
    upstream = tensor(rows, width, seed=3, dtype=torch.float32).detach()
    outcomes = []
    for form in (getattr(activations, name), getattr(activations, f"reference_{name}")):
        result = form(states, other)
        outcomes.append((result, *torch.autograd.grad(result, (states, other), upstream)))
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(activations.bias_gelu, (tensor(3, 5), tensor(5, seed=2)), fast_mode=True)
    assert torch.autograd.gradcheck(activations.geglu, (tensor(3, 5), tensor(3, 5, seed=2)), fast_mode=True)


def test_no_rows() -> None:
    bias = tensor(5)
    empty = activations.bias_gelu(tensor(0, 5), bias)
    assert not torch.autograd.grad(empty.sum(), bias)[0].any()
    assert activations.geglu(tensor(0, 5), tensor(0, 5)).shape == (0, 5)


def test_the_bias_goes_apart_only_where_a_kernel_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert activations.wants_bias_apart(tensor(2, 4))
    monkeypatch.delenv(registry.VARIABLE)
    assert not activations.wants_bias_apart(tensor(2, 4))


@pytest.mark.parametrize("heads", [1, 3])
def test_rotation_of_a_slice_of_the_product(heads: int) -> None:
    product = tensor(5, heads, 3, 8, dtype=torch.float32)
    angles = tensor(5, 1, 4, seed=2).detach().float()
    keys = product.unbind(2)[1]
    turned = rotary.rotate(keys, angles.cos(), angles.sin())
    expected = rotary.reference_turn(keys.detach(), angles.cos(), angles.sin(), 1)
    torch.testing.assert_close(turned, expected)
    upstream = tensor(5, heads, 8, seed=3).detach().float()
    (gradient,) = torch.autograd.grad(turned, product, upstream)
    assert not gradient[:, :, [0, 2]].any()
    torch.testing.assert_close(gradient[:, :, 1], rotary.reference_turn(upstream, angles.cos(), angles.sin(), -1))


def test_rotation_gradcheck_and_what_is_refused() -> None:
    angles = tensor(3, 1, 2, seed=2).detach()
    assert torch.autograd.gradcheck(lambda x: rotary.rotate(x, angles.cos(), angles.sin()), tensor(3, 2, 4), fast_mode=True)
    assert rotary.rotate(tensor(0, 2, 4), angles[:0].cos(), angles[:0].sin()).shape == (0, 2, 4)
    assert not rotary.accepts(torch.ones(2, 1, 12))
