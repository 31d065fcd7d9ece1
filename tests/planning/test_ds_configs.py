"""The shipped DeepSpeed files hold only keys that the installed DeepSpeed reads."""

from __future__ import annotations

import json
from importlib import resources

import pytest

FILES = sorted(entry.name for entry in resources.files("dist_metaxlm.ds_configs").iterdir() if entry.name.endswith(".json"))


def read(name: str) -> dict:
    return json.loads((resources.files("dist_metaxlm.ds_configs") / name).read_text(encoding="utf-8"))


def test_all_stages_are_there():
    bf16 = {f"zero{stage}_bf16.json" for stage in (1, 2, 3)}
    assert set(FILES) >= {f"zero{stage}.json" for stage in range(4)} | bf16


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_known(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = read(name)
    automatic = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"]
    assert [config[key] for key in automatic] == ["auto"] * 4
    assert set(config) <= {*automatic, "bf16", "data_types", "zero_optimization"}
    known = {field.alias or key for key, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(config["zero_optimization"]) <= known
    assert DeepSpeedZeroConfig(**config["zero_optimization"]).stage == int(name[4])
    assert config.get("bf16", {}).get("enabled", False) == ("bf16" in name)


@pytest.mark.parametrize("name", FILES)
def test_overlap_only_where_the_engine_allows_it_with_our_own_accumulation(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**read(name)["zero_optimization"])
    assert zero.stage >= 2 or not zero.overlap_comm
