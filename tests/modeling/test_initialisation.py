from __future__ import annotations

import torch
from torch import nn

from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initial_values, initialise
from dist_metaxlm.recipe.schema import ModelConfig


def config_of(**fields) -> ModelConfig:
    return ModelConfig(**({"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": 310} | fields))


def test_same_bits_whatever_else_there_is() -> None:
    small, large = Encoder(config_of(), seed=4).state_dict(), Encoder(config_of(layers=5), seed=4).state_dict()
    assert set(small) < set(large)
    assert all(torch.equal(tensor, large[name]) for name, tensor in small.items())
    torch.rand(3)
    one = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(5, 6)})
    other = nn.ModuleDict({"b": nn.Linear(5, 6), "c": nn.Linear(2, 2), "a": nn.Linear(4, 5)})
    initialise(one, 1, 0.02)
    initialise(other, 1, 0.02)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_values() -> None:
    state = Encoder(config_of(init_std=0.05), seed=1).state_dict()
    for name, tensor in state.items():
        if tensor.dim() == 1:
            assert (tensor == (0 if name.endswith("bias") else 1)).all(), name
    matrix = state["embedding.tokens.weight"]
    assert abs(matrix.std().item() - 0.05) < 0.002
    assert abs(matrix.mean().item()) < 0.002
    assert not torch.equal(state["blocks.0.mlp.up.weight"], state["blocks.1.mlp.up.weight"])


def test_embeddings_have_a_deviation_of_their_own() -> None:
    state = Encoder(config_of(init_std=0.05, embedding_std=0.2), seed=1).state_dict()
    usual = Encoder(config_of(init_std=0.05), seed=1).state_dict()
    for name, tensor in state.items():
        if name.startswith("embedding.") and tensor.dim() == 2:
            torch.testing.assert_close(tensor, 4 * usual[name])
        else:
            assert torch.equal(tensor, usual[name]), name


def test_seed_and_name_matter() -> None:
    values = initial_values("w", (8, 8), 1, 1.0)
    assert torch.equal(values, initial_values("w", (8, 8), 1, 1.0))
    assert not torch.equal(values, initial_values("w", (8, 8), 2, 1.0))
    assert not torch.equal(values, initial_values("v", (8, 8), 1, 1.0))
