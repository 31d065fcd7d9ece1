"""Recomputing changes what is kept for the backward pass, and no bit of the gradients."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dist_metaxlm.errors import UserError
from dist_metaxlm.modeling.checkpointing import set_recompute
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.planning.memory import estimate_memory
from dist_metaxlm.recipe.layout import Layout
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import ParallelConfig

sys.path.insert(0, str(Path(__file__).parent))
from test_encoder import FAMILIES, config_of, packed_batch

HIDDEN, FFN, LAYERS, TOKENS = 64, 256, 3, 128
SELECTIVE = {"recompute": "selective"}
BLOCKS = {"recompute": "blocks"}
EVERY_SECOND = {"recompute": "blocks", "recompute_every": 2}


def backward(family: str, dropout: float = 0.0, **layout: Any) -> tuple[int, dict[str, torch.Tensor | None], int]:
    """(bytes kept for the backward pass by embedding, blocks and norm; gradients; products made in the backward pass)."""
    encoder = Encoder(
        config_of(family, hidden=HIDDEN, ffn=FFN, layers=LAYERS, dropout=dropout, attention_dropout=dropout)
    ).train()
    set_recompute(encoder, ParallelConfig(**layout))
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # The mask is one for all blocks, and belongs to the micro-batch.
        if storage.data_ptr() not in weights and not (tensor.dim() == 4 and tensor.shape[1] == 1):
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        states = encoder(packed_batch(), step=3)
    size = sum(storage.nbytes() for storage in kept.values())
    calls = []
    handles = [
        module.register_forward_pre_hook(lambda *_: calls.append(1))
        for module in encoder.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    states.square().sum().backward()
    for handle in handles:
        handle.remove()
    return size, {name: parameter.grad for name, parameter in encoder.named_parameters()}, len(calls)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("layout", [SELECTIVE, BLOCKS, EVERY_SECOND], ids=["selective", "blocks", "every second"])
def test_gradients_are_the_same_bit_for_bit(family: str, dropout: float, layout: dict[str, Any]) -> None:
    _, plain, _ = backward(family, dropout)
    _, again, _ = backward(family, dropout, **layout)
    for name, gradient in plain.items():
        other = again[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or torch.equal(gradient, other), name


@pytest.mark.parametrize("family", FAMILIES)
def test_less_is_kept(family: str) -> None:
    (none, _, no_products), (selective, _, some), (blocks, _, all_products), (second, _, most) = (
        backward(family, **layout) for layout in ({}, SELECTIVE, BLOCKS, EVERY_SECOND)
    )
    inside = (4 if family.startswith("modern") else 2) * FFN * TOKENS * LAYERS * 4
    assert none - selective == inside, "selective keeps nothing of the inside of the feed-forward layers, and all else"
    assert blocks < 0.15 * none, "of a block its input is kept"
    assert blocks < second < none
    up = 2 if family.startswith("modern") else 1
    assert (no_products, some, all_products) == (0, LAYERS * (up + 1), LAYERS * (up + 3))
    assert most == 2 * (up + 3), "blocks 0 and 2"


@pytest.mark.parametrize("family", ["xlmr", "modern", "modern-rms"])
@pytest.mark.parametrize("layout", [{}, SELECTIVE, BLOCKS, EVERY_SECOND], ids=str)
def test_the_planner_estimates_what_is_kept(family: str, layout: dict[str, Any]) -> None:
    config = config_of(family, hidden=HIDDEN, ffn=FFN, layers=LAYERS)
    found = estimate_memory(config, Layout(zero_stage=0, **layout), "fp32", TOKENS, 0.2)
    size, _, _ = backward(family, **layout)
    # What is recomputed is there once at a time, in its own backward pass.
    again = (
        0
        if not layout
        else (4 if family.startswith("modern") else 2) * FFN
        if layout == SELECTIVE
        else (backward(family)[0] // LAYERS // TOKENS // 4)
    )
    whole = size + again * TOKENS * 4
    assert found.activations == pytest.approx(whole, rel=0.15)


def test_nothing_is_kept_twice_without_gradients() -> None:
    encoder = Encoder(config_of("xlmr")).eval()
    plain = encoder.hidden_states(packed_batch())
    set_recompute(encoder, ParallelConfig(**BLOCKS))
    with torch.no_grad():
        again = encoder.hidden_states(packed_batch())
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallel.recompute_every=2", "set parallel.recompute=blocks"),
        ("parallel.recompute=some", "none"),
        ("parallel.offload_optimizer=true", "set parallel.zero_stage=1"),
    ],
)
def test_contradictions_are_refused(override: str, words: str) -> None:
    with pytest.raises(UserError, match="recipe quickstart") as caught:
        load_recipe("quickstart", [override, *(["parallel.zero_stage=0"] if "offload" in override else [])])
    assert words in str(caught.value)
