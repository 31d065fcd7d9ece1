"""The norm of gradients: against fp64, whatever their size and dtype, and as an engine's clipping uses it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dist_metaxlm.deepspeed_adapter import gradient_norm
from dist_metaxlm.deepspeed_adapter.gradient_norm import exact_norm, use_exact_norms

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


def engine_without_zero(largest: float = 1.0) -> SimpleNamespace:
    """Three layers, the last without a gradient, under AdamW with weight decay."""
    model = nn.Sequential(nn.Linear(40, 50), nn.Linear(50, 3), nn.Linear(2, 2))
    for p in model[:2].parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    engine = SimpleNamespace(
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5),
        module=model,
        gradient_clipping=lambda: largest,
    )
    use_exact_norms(engine)
    return engine


@pytest.mark.parametrize("scale", [1e-3, 10.0], ids=["below", "above"])
def test_clipping_without_zero_is_torchs(scale):
    engine = engine_without_zero()
    parameters = list(engine.module[:2].parameters())
    for p in parameters:
        p.grad *= scale
    expected = [p.grad.clone() for p in parameters]
    norm = torch.stack([g.double().norm() for g in expected]).norm()
    engine.optimizer.step()
    assert float(engine._global_grad_norm) == pytest.approx(float(norm), rel=1e-6)
    for p, before in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, before / max(1.0, float(norm) + 1e-6), rtol=1e-6, atol=0)


def test_without_zero_the_norm_is_there_where_nothing_is_clipped():
    engine = engine_without_zero(largest=0.0)
    before = [p.grad.clone() for p in engine.module[:2].parameters()]
    engine.optimizer.step()
    assert float(engine._global_grad_norm) == pytest.approx(float(torch.cat([g.flatten() for g in before]).norm()), rel=1e-6)
    assert all(torch.equal(p.grad, g) for p, g in zip(engine.module[:2].parameters(), before, strict=True))


def test_without_zero_what_no_objective_reached_is_decayed_and_its_moments_fade():
    engine = engine_without_zero()
    last = engine.module[2].weight
    state = engine.optimizer.state
    for p in engine.module.parameters():
        state[p] = {"step": torch.tensor(3.0), "exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)}
    before = last.detach().clone()
    engine.optimizer.step()
    assert {float(found["step"]) for found in state.values()} == {4.0}
    torch.testing.assert_close(state[last]["exp_avg"], torch.full((2, 2), 0.9))
    assert (last < before * (1 - 0.1 * 0.5)).all()


def test_without_zero_a_step_whose_gradients_are_not_finite_is_skipped():
    engine = engine_without_zero()
    before = [p.detach().clone() for p in engine.module.parameters()]
    engine.module[0].weight.grad[3, 3] = float("inf")
    engine.optimizer.step()
    assert engine.optimizer.overflow
    assert float(engine._global_grad_norm) == float("inf")
    assert all(torch.equal(p, old) for p, old in zip(engine.module.parameters(), before, strict=True))
    engine.module[0].weight.grad[3, 3] = 0.0
    engine.optimizer.step()
    assert not engine.optimizer.overflow
    assert not torch.equal(engine.module[0].weight, before[0])


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


@pytest.mark.parametrize("reached", [True, False])
def test_norms_of_the_bf16_optimiser_are_handed_over_and_a_stage_that_nothing_reached_has_one(reached):
    from deepspeed.runtime.utils import get_global_norm_of_tensors

    gradients = [torch.full((2**25,), 1e-4), torch.ones(9)] if reached else []

    class Bf16:
        fp32_groups_flat_partition = (torch.zeros(4),)

        def get_grads_for_norm(self, for_clipping=False):
            return gradients if for_clipping else (gradients, {})

    engine = SimpleNamespace(optimizer=Bf16())
    use_exact_norms(engine)
    norms, experts = engine.optimizer.get_grads_for_norm()
    expected = (2**25 * float(gradients[0][0].double()) ** 2 + 9) ** 0.5 if reached else 0.0
    assert float(get_global_norm_of_tensors(norms)) == pytest.approx(expected, rel=1e-6)
    assert experts == {}
    assert engine.optimizer.get_grads_for_norm(for_clipping=True) is gradients
