"""Counts from the shape alone against the model that is built, and against published sizes."""

from __future__ import annotations

import pytest
import torch

from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.sharding import partition_axis
from dist_metaxlm.planning.parameters import count_parameters, stage_parameters
from dist_metaxlm.planning.stages import model_stages
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import ModelConfig

SHAPES = [
    {"layers": 3, "hidden": 24, "heads": 2, "ffn": 50, "vocab_size": 301, "max_positions": 17},
    {"layers": 1, "hidden": 8, "heads": 4, "ffn": 8, "vocab_size": 1000, "max_positions": 64},
]
FAMILIES = [
    {"norm": "post"},
    {"norm": "pre"},
    {"family": "modern", "norm": "pre"},
    {"family": "modern", "norm": "pre", "norm_type": "rms"},
]


def parts(encoder: Encoder) -> dict[str, int]:
    count: dict[str, int] = {}
    for name, parameter in encoder.named_parameters():
        count[name.split(".")[0]] = count.get(name.split(".")[0], 0) + parameter.numel()
    return count


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_built_encoder_by_part(shape, family):
    config = ModelConfig(**shape, **family)
    with torch.device("meta"):
        built = parts(Encoder(config))
    counted = count_parameters(config)
    assert counted.word_embedding + counted.positions + counted.embedding_norm == built["embedding"]
    assert counted.blocks_split + counted.blocks_whole == built["blocks"]
    assert counted.final_norm == built.get("final_norm", 0)
    assert counted.head + counted.output_bias == built["head"]
    assert counted.total == sum(built.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_built_encoder_by_stage(shape, family):
    """Stages as training cuts them, on one tensor rank and on two."""
    config, table = ModelConfig(**shape, **family), "embedding.tokens.weight"
    for count in range(1, config.layers + 3):
        whole = 0
        for stage in model_stages(config, 16, 0.2, count):
            with torch.device("meta"):
                built = dict(Encoder(config, stage=stage).named_parameters())
            found = stage_parameters(config, stage)
            assert found.total == sum(parameter.numel() for parameter in built.values())
            assert found.copied == (built[table].numel() if stage.last and not stage.first else 0)
            whole += found.own
            rows = -(-config.vocab_size // 2) * config.hidden
            halved = {
                name: parameter.numel() // 2 if partition_axis(name) is not None else parameter.numel()
                for name, parameter in built.items()
            }
            halved |= {name: size for name, size in ((table, rows), ("head.bias", rows // config.hidden)) if name in built}
            assert stage_parameters(config, stage, 2).total == sum(halved.values())
        assert whole == count_parameters(config).total


@pytest.mark.parametrize(
    ("name", "millions"),
    [("xlmr-base", 278), ("xlmr-large", 560), ("modern-base", 308), ("xlmr-xl", 3483), ("xlmr-xxl", 10713)],
)
def test_shipped_sizes(name, millions):
    assert count_parameters(load_recipe(name, []).model).total / 1e6 == pytest.approx(millions, abs=1)
