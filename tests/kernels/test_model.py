"""The whole model on interpreted kernels against the same model on the references: losses and every gradient."""

from __future__ import annotations

import pytest
import torch

from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.kernels import registry
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig

pytest.importorskip("triton")
FAMILIES = {"xlmr": {}, "xlmr-pre": {"norm": "pre"}, "modern": {"family": "modern", "norm": "pre", "local_window": 6}}
FAMILIES["modern-rms"] = {**FAMILIES["modern"], "norm_type": "rms", "layers": 1}


def a_batch() -> PackedBatch:
    """Two windows of 12 tokens, in documents of 1, 4, 7 and 12."""
    tokens = torch.randint(5, 300, (24,), generator=torch.Generator().manual_seed(3))
    targets = torch.arange(0, 24, 5)
    return PackedBatch(
        tokens=tokens,
        positions=torch.cat([torch.arange(length) for length in (1, 4, 7, 12)]),
        cu_seqlens=torch.tensor([0, 1, 5, 12, 24], dtype=torch.int32),
        window=12,
        samples=torch.tensor([50, 2**33]),
        languages=torch.zeros(2, dtype=torch.int64),
        targets=targets,
        target_tokens=targets + 9,
    )


def run(model: Encoder, batch: PackedBatch, causal: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    states = model(batch, step=3, causal=causal)
    losses = model.masked_lm_loss(states, batch.targets, batch.target_tokens)
    losses.sum().backward()
    return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "causal"), [*((family, False) for family in FAMILIES), ("xlmr", True), ("modern", True)])
def test_losses_and_gradients(family: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    shape = {"layers": 2, "hidden": 16, "heads": 2, "ffn": 24, "vocab_size": 310, "max_positions": 32}
    config = ModelConfig(**(shape | {"dropout": 0.2, "attention_dropout": 0.1} | FAMILIES[family]))
    model = Encoder(config, seed=4)
    batch = a_batch()
    monkeypatch.setenv(registry.VARIABLE, "reference")
    expected, gradients = run(model, batch, causal)
    monkeypatch.setenv(registry.VARIABLE, "triton")
    losses, others = run(model, batch, causal)
    used = {name for name, backend in registry.choices().items() if backend == "triton"}
    expected_here = {"geglu", "rotate", "embed_norm"} if family.startswith("modern") else {"bias_gelu"}
    assert {"linear_cross_entropy", "add_norm", "norm"} | expected_here <= used
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=2e-5, rtol=1e-4, msg=name)
