"""The shipped DeepSpeed files hold only keys that the installed DeepSpeed reads."""

from __future__ import annotations

import json
from importlib import resources

import pytest

FILES = sorted(entry.name for entry in resources.files("dist_metaxlm.ds_configs").iterdir() if entry.name.endswith(".json"))


def read(name: str) -> dict:
    return json.loads((resources.files("dist_metaxlm.ds_configs") / name).read_text(encoding="utf-8"))


def test_every_stage_is_there_in_every_precision_with_and_without_offload():
    # Without ZeRO DeepSpeed has no fp32 master weights of half-precision ones, and nothing to offload.
    assert set(FILES) == {"zero0.json"} | {
        f"zero{stage}{offload}{precision}.json"
        for stage in (1, 2, 3)
        for offload in ("", "_offload")
        for precision in ("", "_bf16", "_fp16")
    }


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_known_and_means_what_the_name_says(name):
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

    config = read(name)
    automatic = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"]
    assert [config[key] for key in automatic] == ["auto"] * 4
    assert set(config) <= {*automatic, "bf16", "fp16", "data_types", "zero_optimization", "zero_force_ds_cpu_optimizer"}
    zero = config["zero_optimization"]
    for section, kind in (
        (zero, DeepSpeedZeroConfig),
        (config.get("fp16", {}), DeepSpeedFP16Config),
        (zero.get("offload_optimizer", {}), DeepSpeedZeroOffloadOptimizerConfig),
    ):
        assert set(section) <= {field.alias or key for key, field in kind.model_fields.items()}
    assert zero["stage"] == int(name[4])
    assert ("offload_optimizer" in zero) == ("offload" in name) == ("zero_force_ds_cpu_optimizer" in config)
    for precision in ("bf16", "fp16"):
        assert config.get(precision, {}).get("enabled", False) == (precision in name)
    # Sums over micro-batches are formed in fp32 whatever the gradients of one are.
    assert config.get("data_types", {}).get("grad_accum_dtype", "fp32") == "fp32"


@pytest.mark.parametrize("name", FILES)
def test_overlap_only_where_the_engine_allows_it_with_our_own_accumulation(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(
        **{
            key: value
            for key, value in read(name)["zero_optimization"].items()
            if value != "auto" and key != "offload_optimizer"
        }
    )
    assert zero.stage >= 2 or not zero.overlap_comm
