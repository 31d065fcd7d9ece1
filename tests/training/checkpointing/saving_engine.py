"""A stand-in for an engine without ZeRO: a tiny encoder and torch's AdamW, which is all that saving asks of one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.schema import ModelConfig


def small_engine(seed: int = 1) -> Any:
    config = ModelConfig(layers=1, hidden=16, heads=2, ffn=32, vocab_size=301, max_positions=16)
    model = PretrainingModel(Encoder(config, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine = SimpleNamespace(module=model, optimizer=optimizer, device=torch.device("cpu"))
    optimizer_state.create_adam_state(engine)
    return engine


def update(engine: Any) -> None:
    """One update with gradients of ones."""
    for param in engine.module.parameters():
        param.grad = torch.ones_like(param)
    engine.optimizer.step()


def state(engine: Any) -> dict[str, torch.Tensor]:
    """Copies of all weights and moments, by the names that they have in a checkpoint's files."""
    found = {}
    for name, param in optimizer_state.named_parameters(engine):
        found[name] = param.detach().clone()
        for moment in optimizer_state.MOMENTS:
            found[f"{moment}.{name}"] = engine.optimizer.state[param][moment].clone()
    return found
