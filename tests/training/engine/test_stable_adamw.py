"""StableAdamW against AdamW and against the algorithm as its paper writes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.recipe.schema import OptimizerConfig
from dist_metaxlm.training.checkpointing.checkpoint import same_moments
from dist_metaxlm.training.engine.engine import parameter_groups
from dist_metaxlm.training.engine.stable_adamw import StableAdamW

RATE, STEPS = 0.01, 12


def gradients() -> list[list[torch.Tensor]]:
    """Of two tensors; those of the matrix jump at step 6."""
    draw = torch.Generator().manual_seed(5)
    return [
        [torch.randn(6, 4, generator=draw) * (30.0 if step == 6 else 1.0), torch.randn(6, generator=draw)]
        for step in range(STEPS)
    ]


def trained(config: OptimizerConfig, stable: bool) -> list[torch.Tensor]:
    torch.manual_seed(1)
    model = nn.Linear(4, 6)
    groups = parameter_groups(model, config)
    if stable:
        optimizer: torch.optim.Optimizer = StableAdamW(groups, config)
        engine: Any = SimpleNamespace(optimizer=optimizer, module=model, device=torch.device("cpu"))
        optimizer_state.create_adam_state(engine)
        optimizer.attach(engine)
    else:
        optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)
    for group in optimizer.param_groups:
        group["lr"] = RATE
    for of in gradients():
        for param, gradient in zip((model.weight, model.bias), of, strict=True):
            param.grad = gradient.clone()
        optimizer.step()
    return [model.weight.detach(), model.bias.detach()]


def as_the_paper_has_it(config: OptimizerConfig) -> list[torch.Tensor]:
    """Algorithm 2 of arXiv 2304.13013, with bias correction in the decays, in fp64."""
    torch.manual_seed(1)
    model = nn.Linear(4, 6)
    weights = [param.detach().double().clone() for param in (model.weight, model.bias)]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step, of in enumerate(gradients(), start=1):
        beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in (config.beta1, config.beta2))
        for number, gradient in enumerate(value.double() for value in of):
            first[number] = beta1 * first[number] + (1 - beta1) * gradient
            second[number] = beta2 * second[number] + (1 - beta2) * gradient**2
            rms = (gradient**2 / second[number].clamp(min=config.eps**2)).mean().sqrt()
            rate = RATE / max(1.0, float(rms) / config.update_clip)
            decay = config.weight_decay if number == 0 else 0.0
            update = first[number] / (second[number].sqrt() + config.eps)
            weights[number] = weights[number] - rate * decay * weights[number] - rate * update
    return weights


@pytest.mark.parametrize("clip", [0.5, 1.0])
def test_it_is_the_published_algorithm(clip: float) -> None:
    config = OptimizerConfig(name="stable_adamw", beta2=0.9, weight_decay=0.1, update_clip=clip)
    for ours, theirs in zip(trained(config, stable=True), as_the_paper_has_it(config), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=1e-6)


def test_without_clipping_it_is_adamw_and_with_it_the_jump_is_smaller() -> None:
    config = OptimizerConfig(name="stable_adamw", beta2=0.9, weight_decay=0.1, update_clip=1e9)
    free, adamw = trained(config, stable=True), trained(config, stable=False)
    for ours, theirs in zip(free, adamw, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    clipped = trained(config.model_copy(update={"update_clip": 1.0}), stable=True)
    assert not torch.allclose(clipped[0], adamw[0], rtol=1e-3)


def test_adamw_and_stable_adamw_share_their_moments() -> None:
    assert same_moments("adamw", "stable_adamw")
    assert same_moments("muon", "muon")
    assert not same_moments("muon", "stable_adamw")
