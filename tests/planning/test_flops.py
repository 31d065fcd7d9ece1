"""Operation counts: against reference/kernels' table of round figures, and against torch's own counter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dist_metaxlm.planning.flops import flops_per_token, step_flops, training_flops
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import ModelConfig

BASE = ModelConfig(layers=12, hidden=768, heads=12, ffn=3072, vocab_size=250112)
LARGE = ModelConfig(layers=24, hidden=1024, heads=16, ffn=4096, vocab_size=250112)


@pytest.mark.parametrize(
    ("model", "rate", "giga"), [(BASE, 0.15, 0.740), (BASE, 0.30, 0.913), (LARGE, 0.15, 2.194), (LARGE, 0.30, 2.426)]
)
def test_the_worked_table(model, rate, giga):
    assert flops_per_token(model, 512, rate) / 1e9 == pytest.approx(giga, abs=0.001)


@pytest.mark.parametrize("family", ["xlmr", "modern"])
def test_linear_layers_and_head_as_torch_counts_them(family):
    """All matrix products but attention's; one backward pass costs two forward ones."""
    config = ModelConfig(family=family, norm="pre", layers=3, hidden=16, heads=2, ffn=40, vocab_size=400, max_positions=32)
    from dist_metaxlm.modeling.block import Block
    from dist_metaxlm.modeling.head import Head

    tokens, targets = 64, 10
    with torch.device("meta"):
        blocks, head = [Block(config, index) for index in range(config.layers)], Head(config)
        states, embedding = torch.empty(tokens, config.hidden), torch.empty(config.vocab_size, config.hidden)
        with FlopCounterMode(display=False) as counter:
            for block in blocks:
                for layer in block.modules():
                    if isinstance(layer, torch.nn.Linear):
                        layer(torch.empty(tokens, layer.in_features))
            head(states[:targets], embedding)
    assert training_flops(config, tokens, 0, targets) == 3 * counter.get_total_flops()


def test_attention_grows_with_the_squared_lengths_only():
    lengths = np.array([5, 17, 100])
    linear = training_flops(BASE, lengths.sum(), 0, 0)
    assert training_flops(BASE, lengths.sum(), (lengths**2).sum(), 0) - linear == 12 * 12 * 768 * (lengths**2).sum()


def test_local_layers_attend_over_their_window():
    modern = ModelConfig(
        family="modern", norm="pre", layers=4, hidden=64, heads=1, ffn=96, vocab_size=1000, local_window=128, global_every=3
    )
    # Layers 0 and 3 are global.
    assert flops_per_token(modern, 1024, 0) - flops_per_token(modern, 0, 0) == 12 * 64 * (2 * 1024 + 2 * 128)
    assert flops_per_token(modern, 64, 0) - flops_per_token(modern, 0, 0) == 12 * 64 * 4 * 64


def test_contrast_runs_only_its_layers():
    recipe = load_recipe("xlmr-base", [])
    cross, model = recipe.phases["cross"], recipe.model
    masked = sum(
        training_flops(model, o.batch_tokens, o.batch_tokens * 512, o.batch_tokens // 512 * 77) for o in cross.objectives[:2]
    )
    contrast = training_flops(model, 2 * 2048 * 64, 2 * 2048 * 64 * 64, 0, layers=8)
    assert step_flops(model, cross) == masked + contrast


def test_denoising_word_alignment_has_a_pass_for_labels_and_a_pointer_in_place_of_the_head():
    """Its two linear layers and the products of the pointer as torch counts them, forward and twice that backward."""
    from dist_metaxlm.modeling.encoder import Encoder
    from dist_metaxlm.objectives.denoising_alignment import Pointer

    recipe = load_recipe("xlmr-base", ["phases.cross.objectives=[{name: dwa, batch_tokens: 1024, layer: 8}]"])
    model = recipe.model
    tokens = torch.empty(2, 512, model.hidden, device="meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        pointer = Pointer(Encoder(model))
        pointer.query(tokens) @ pointer.key(tokens).transpose(1, 2)
    trained = training_flops(model, 1024, 1024 * 512, 0)
    labels = training_flops(model, 1024, 1024 * 512, 0, layers=8) / 3 + 2 * 1024 * 512 * model.hidden
    assert step_flops(model, recipe.phases["cross"]) == pytest.approx(trained + labels + 3 * counter.get_total_flops())
