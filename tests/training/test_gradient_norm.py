"""The norm of gradients: against fp64, whatever their size and dtype, and as an engine's clipping uses it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dist_metaxlm.training import gradient_norm
from dist_metaxlm.training.gradient_norm import exact_norm, use_exact_norms

SHAPES = [(), (0,), (1,), (1023,), (1024,), (1025,), (3, 5000), (64, 64, 7)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_is_that_in_fp64(monkeypatch, shape, dtype):
    monkeypatch.setattr(gradient_norm, "PART", 4096)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = exact_norm(values)
    assert found.dtype == torch.float64
    assert found.shape == ()
    assert float(found) == pytest.approx(float(values.double().norm()), rel=1e-6)


def test_norm_of_a_vocabulary_keeps_what_fp32_loses():
    values = torch.full((2**25,), 1e-4)
    assert float(exact_norm(values)) == pytest.approx(float(values[0].double()) * 2**12.5, rel=1e-6)


def test_norm_of_a_transposed_matrix_and_of_what_overflowed():
    values = torch.randn(300, 50, generator=torch.Generator().manual_seed(2))
    assert float(exact_norm(values.t())) == pytest.approx(float(values.double().norm()), rel=1e-6)
    values[7, 7] = float("inf")
    assert float(exact_norm(values)) == float("inf")
    values[7, 7] = float("nan")
    assert exact_norm(values).isnan()


@pytest.mark.parametrize("scale", [1e-3, 10.0], ids=["below", "above"])
def test_clipping_without_zero_is_torchs(scale):
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3), nn.Linear(2, 2))  # the last one gets no gradient
    for p in model[:2].parameters():
        p.grad = scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    expected = [p.grad.clone() for p in model[:2].parameters()]
    norm = torch.stack([g.double().norm() for g in expected]).norm()
    engine = SimpleNamespace(optimizer=torch.optim.AdamW(model.parameters()), gradient_clipping=lambda: 1.0,
                             device=torch.device("cpu"))
    use_exact_norms(engine)
    engine.clip_fp32_gradients()
    assert float(engine._global_grad_norm) == pytest.approx(float(norm), rel=1e-6)
    for p, before in zip(model[:2].parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, before / max(1.0, float(norm) + 1e-6), rtol=1e-6, atol=0)


def test_norms_under_zero_are_handed_over_in_order_with_their_marks():
    seen = []

    class Sharded:
        def get_grad_norm_direct(self, gradients, params, norm_type=2):
            seen.extend((float(g.double().norm()), getattr(g, "_zero_padding", False)) for g in gradients)
            return norm_type

    engine = SimpleNamespace(optimizer=Sharded())
    use_exact_norms(engine)
    padding = torch.zeros(5)
    padding._zero_padding = True
    assert engine.optimizer.get_grad_norm_direct([torch.full((2048,), 2.0), padding, torch.ones(9)], []) == 2
    assert seen == [(pytest.approx(2 * 2048**0.5), False), (0.0, True), (3.0, False)]
