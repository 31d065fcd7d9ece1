from __future__ import annotations

import pytest
import torch

from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.sharding import (
    VOCABULARY,
    WHOLE,
    TensorShard,
    gather_whole,
    own_part,
    partition_axis,
    whole_shape,
)
from dist_metaxlm.recipe.schema import ModelConfig

CONFIG = ModelConfig(layers=1, hidden=32, heads=4, ffn=64, vocab_size=311)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_make_the_whole(size: int) -> None:
    for name, whole in Encoder(CONFIG, seed=2).state_dict().items():
        shards = [TensorShard(rank, size) for rank in range(size)]
        parts = [own_part(name, whole, shard) for shard in shards]
        axis = partition_axis(name)
        assert len({part.shape for part in parts}) == 1
        assert all(
            whole_shape(name, part.shape, shard, CONFIG.vocab_size) == whole.shape
            for part, shard in zip(parts, shards, strict=True)
        )
        if axis is None:
            assert all(torch.equal(part, whole) for part in parts)
            continue
        joined = torch.cat(parts, dim=axis) if size > 1 else whole
        assert torch.equal(joined[: CONFIG.vocab_size] if name in VOCABULARY else joined, whole)
        assert not joined[CONFIG.vocab_size :].any() or name not in VOCABULARY


def test_every_matrix_of_a_block_is_cut_and_every_vector_of_a_norm_is_whole() -> None:
    for family in ("xlmr", "modern"):
        config = CONFIG.model_copy(update={"family": family, "norm": "post" if family == "xlmr" else "pre"})
        for name, parameter in Encoder(config).named_parameters():
            in_block = name.startswith("blocks.") and parameter.dim() == 2
            assert (partition_axis(name) is not None) == (
                in_block or name in VOCABULARY or name.endswith(("qkv.bias", "up.bias"))
            ), name


def test_own_vocabulary_leaves_out_the_padding() -> None:
    owned = [list(TensorShard(rank, 4).own_vocabulary(311)) for rank in range(4)]
    assert [len(ids) for ids in owned] == [78, 78, 78, 77]
    assert [token for ids in owned for token in ids] == list(range(311))


def test_tokens_of_a_rank() -> None:
    assert TensorShard(1, 2).tokens(64) == slice(0, 64)
    assert TensorShard(1, 2, sequence=True).tokens(64) == slice(32, 64)
    with pytest.raises(AssertionError, match="63 tokens"):
        TensorShard(1, 2, sequence=True).tokens(63)


def test_without_ranks_the_part_is_the_whole() -> None:
    part = torch.ones(3, 4)
    assert gather_whole("blocks.0.mlp.up.weight", part, WHOLE, 311, 0) is part
