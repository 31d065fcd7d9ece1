from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initial_part, initial_values, initialise
from dist_metaxlm.modeling.sharding import TensorShard
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


def test_a_deferred_encoder_gets_the_same_bits_one_parameter_at_a_time() -> None:
    config, cpu = config_of(vocab_size=311), torch.device("cpu")
    whole = Encoder(config, seed=4)
    deferred, seen = Encoder(config, seed=4, deferred=True), []
    assert all(parameter.is_meta for parameter in deferred.parameters())
    deferred.materialise(torch.bfloat16, cpu, lambda parameter: seen.append(id(parameter)))
    assert seen == [id(parameter) for parameter in deferred.parameters()]
    for name, value in whole.state_dict().items():
        assert torch.equal(deferred.state_dict()[name], value.bfloat16()), name
    deferred.materialise(torch.float32, cpu)  # has its values already
    assert {parameter.dtype for parameter in deferred.parameters()} == {torch.bfloat16}


def test_a_deferred_encoder_takes_loaded_weights_and_misses_none() -> None:
    config, weights = config_of(), Encoder(config_of(), seed=9).state_dict()
    deferred = Encoder(config, seed=4, deferred=True)
    deferred.load_logical(weights)
    deferred.materialise(torch.float32, torch.device("cpu"))
    assert all(torch.equal(value, weights[name]) for name, value in deferred.state_dict().items())
    first = deferred.embedding.tokens.weight
    assert first.data_ptr() != weights["embedding.tokens.weight"].data_ptr(), "training would change what was loaded"
    del weights["head.bias"]
    with pytest.raises(KeyError, match=r"head\.bias"):
        Encoder(config, seed=4, deferred=True).load_logical(weights)


def test_a_part_is_cut_from_the_whole_and_keeps_no_more_memory() -> None:
    whole = initial_values("embedding.tokens.weight", (7, 4), 1, 1.0)
    parts = [initial_part("embedding.tokens.weight", torch.Size((4, 4)), 1, 1.0, TensorShard(n, 2), 7) for n in (0, 1)]
    assert torch.equal(torch.cat(parts), torch.cat([whole, torch.zeros(1, 4)]))
    out = [initial_part("blocks.0.mlp.down.weight", torch.Size((4, 3)), 1, 1.0, TensorShard(n, 2)) for n in (0, 1)]
    assert torch.equal(torch.cat(out, dim=1), initial_values("blocks.0.mlp.down.weight", (4, 6), 1, 1.0))
    assert all(part.is_contiguous() and part.untyped_storage().nbytes() == part.nbytes for part in parts + out)
