"""The optimisers of the trainer, written a second time in plain torch: one process, whole matrices, no DeepSpeed."""

from __future__ import annotations

import math

import torch
from torch import nn

from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.engine.engine import parameter_groups


class PlainMuon:
    """Muon on the matrices of the blocks (arXiv 2502.16982), AdamW on the rest."""

    def __init__(self, model: nn.Module, recipe: Recipe, rate: float) -> None:
        self._config, self._heads, self._rate = recipe.optimizer, recipe.model.heads, rate * recipe.optimizer.matrix_rate
        self._matrices = {name: p for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2}
        self._momentum = {name: torch.zeros_like(p) for name, p in self._matrices.items()}
        rest = [p for name, p in model.named_parameters() if name not in self._matrices]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": self._config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (self._config.beta1, self._config.beta2)
        self._adamw = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=self._config.eps, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients."""
        self._adamw.step()
        beta = self._config.momentum
        for name, p in self._matrices.items():
            assert p.grad is not None
            momentum = self._momentum[name]
            momentum.mul_(beta).add_(p.grad, alpha=1 - beta)
            direction = (1 - beta) * p.grad + beta * momentum if self._config.nesterov else momentum
            p.mul_(1 - self._rate * self._config.weight_decay).sub_(self._rate * self._update(name, direction))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self._matrices.values():
            p.grad = None
        self._adamw.zero_grad()

    def _update(self, name: str, direction: torch.Tensor) -> torch.Tensor:
        if not name.endswith(".qkv.weight"):
            return _orthogonal(direction, self._config.newton_schulz_steps)
        width = direction.shape[0] // (3 * self._heads)
        rows = torch.arange(direction.shape[0]).view(self._heads, 3, width)
        together = [rows[:, kind].reshape(-1) for kind in range(3)]
        each = [rows[head, kind] for head in range(self._heads) for kind in range(3)]
        update = torch.empty_like(direction)
        for part in together if self._config.heads == "together" else each:
            update[part] = _orthogonal(direction[part], self._config.newton_schulz_steps)
        return update


def _orthogonal(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T if matrix.shape[0] <= matrix.shape[1] else x.T @ x
        change = -4.7750 * gram + 2.0315 * gram @ gram
        x = 3.4445 * x + (change @ x if matrix.shape[0] <= matrix.shape[1] else x @ change)
    return 0.2 * math.sqrt(max(matrix.shape)) * x


class PlainStableAdamW(torch.optim.AdamW):
    """AdamW that divides a tensor's rate by the root mean square of g^2 / u (arXiv 2304.13013), on whole tensors."""

    update_clip = 1.0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the gradients."""
        every = self.param_groups
        beta2 = every[0]["betas"][1]
        for group in every:
            for p in group["params"]:
                state = self.state[p]
                before = state["exp_avg_sq"] if state else torch.zeros_like(p)
                count = float(state["step"]) + 1 if state else 1.0
                second = (beta2 * before + (1 - beta2) * p.grad.square()) / (1 - beta2**count)
                rms = (p.grad.square() / second.clamp(min=group["eps"] ** 2)).mean(dtype=torch.float64).sqrt()
                self.param_groups = [{**group, "params": [p], "lr": group["lr"] / max(1.0, float(rms) / self.update_clip)}]
                super().step()
        self.param_groups = every


def plain_optimizer(model: nn.Module, recipe: Recipe, rate: float) -> torch.optim.Optimizer | PlainMuon:
    """The recipe's optimiser at a constant learning rate."""
    config = recipe.optimizer
    if config.name == "muon":
        return PlainMuon(model, recipe, rate)
    groups = parameter_groups(model, config)
    if config.name == "stable_adamw":
        stable = PlainStableAdamW(groups, lr=rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
        stable.update_clip = config.update_clip
        return stable
    return torch.optim.AdamW(groups, lr=rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
