"""Shipped DeepSpeed files are filled from the recipe and accepted by DeepSpeed; a user's file and the recipe agree."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_metaxlm.deepspeed_adapter.config_files import follow_file, read_config, shipped_file
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.engine.engine import engine_config

FOLDER = resources.files("dist_metaxlm.ds_configs")
LAYOUTS = [
    (0, False, "fp32"),
    *(
        (stage, offload, precision)
        for stage in (1, 2, 3)
        for offload in (False, True)
        for precision in ("fp32", "bf16", "fp16")
    ),
]


def recipe_for(stage: int, offload: bool, precision: str, *more: str) -> Any:
    return load_recipe(
        "quickstart",
        [
            f"parallel.zero_stage={stage}",
            f"parallel.offload_optimizer={str(offload).lower()}",
            f"training.precision={precision}",
            *more,
        ],
    )


def values(tree: Any) -> list[Any]:
    return [leaf for value in tree.values() for leaf in values(value)] if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_auto_is_filled_and_deepspeed_takes_the_result(layout: tuple[int, bool, str], device: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    stage, offload, precision = layout
    recipe = recipe_for(*layout, "training.fp16_scale_power=12", "training.fp16_scale_window=77", "optimizer.clip_norm=0.5")
    config = engine_config(recipe, torch.device(device), 4, None)
    assert "auto" not in values(config)
    config["train_batch_size"] = config["train_micro_batch_size_per_gpu"]  # this process is one rank, not four
    parsed = DeepSpeedConfig(config)
    assert (parsed.zero_optimization_stage, parsed.gradient_clipping) == (stage, 0.5)
    assert parsed.float16_config.enabled == (precision == "fp16")
    assert parsed.bfloat16_config.enabled == (precision == "bf16")
    if precision == "fp16":
        assert (parsed.float16_config.initial_scale_power, parsed.float16_config.loss_scale_window) == (12, 77)
        assert parsed.float16_config.loss_scale == 0, "dynamic"
    if offload:
        assert parsed.zero_config.offload_optimizer.device == "cpu"
        assert parsed.zero_config.offload_optimizer.pin_memory == (device == "cuda")
    if stage == 3:
        assert parsed.zero_config.param_persistence_threshold == 10 * recipe.model.hidden


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_file_decides_stage_offload_and_precision(layout: tuple[int, bool, str], tmp_path: Path) -> None:
    wanted = recipe_for(*layout)
    copy = tmp_path / "mine.json"
    copy.write_text((FOLDER / shipped_file(wanted, layout[2], 2)).read_text(encoding="utf-8"), encoding="utf-8")
    followed = follow_file(load_recipe("quickstart"), str(copy))
    assert followed.parallel == wanted.parallel
    assert followed.training == wanted.training
    assert follow_file(wanted, None) is wanted


@pytest.mark.parametrize(
    ("content", "overrides", "words"),
    [
        ({"bf16": {"enabled": True}}, ["training.precision=fp32"], "set training.precision=auto"),
        ({"bf16": {"enabled": True}}, [], "has bf16 without ZeRO"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 0}}, [], 'write "zero_optimization": {"stage": 1}'),
        ({"bf16": {"enabled": "auto"}}, [], "enabled: auto, which the recipe has no value for; give a value there"),
        ({"zero_optimization": {"stage": 7}}, [], "parallel.zero_stage: Input should be 0, 1, 2 or 3"),
        ({"bf16": True}, [], "bf16: true, and it is a section"),
        ({"zero_optimization": None}, [], "zero_optimization: null, and it is a section"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": "cpu"}},
            [],
            'offload_optimizer: "cpu", and it is a section',
        ),
        ({"zero_optimization": {"stage": 2}}, ["parallel.pipeline=2"], "set zero_stage: 1"),
        ({"optimizer": {}}, [], "which the recipe decides"),
    ],
)
def test_contradictions_are_refused(content: dict[str, Any], overrides: list[str], words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        follow_file(load_recipe("quickstart", overrides), str(file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_auto_is_filled_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    offload = {"device": "cpu", "pin_memory": "auto"}
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": offload}}))
    found = engine_config(load_recipe("quickstart"), torch.device("cuda"), 2, str(file))
    assert found["zero_optimization"]["offload_param"]["pin_memory"] is True


def test_an_unknown_auto_and_a_broken_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}))
    with pytest.raises(UserError, match="reduce_bucket_size: auto"):
        engine_config(load_recipe("quickstart"), torch.device("cpu"), 1, str(file))
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON at line 1"):
        read_config(str(file), shipped=False)
    file.write_text('{"train_batch_size": 7, "gradient_accumulation_steps": "auto"}')
    with pytest.raises(UserError, match=r'sets train_batch_size, which follow .* write "auto" there or leave them out'):
        read_config(str(file), shipped=False)


def test_a_process_alone_gets_no_zero_where_it_would_only_copy() -> None:
    assert shipped_file(load_recipe("quickstart"), "fp32", 1) == "zero0.json"
    assert shipped_file(load_recipe("quickstart"), "fp32", 2) == "zero1.json"
    assert shipped_file(load_recipe("quickstart"), "bf16", 1) == "zero1_bf16.json"  # ZeRO keeps its fp32 weights
    assert shipped_file(load_recipe("quickstart", ["parallel.offload_optimizer=true"]), "fp32", 1) == "zero1_offload.json"
    for parts in ("tensor", "pipeline"):
        assert shipped_file(load_recipe("quickstart", [f"parallel.{parts}=2"]), "fp32", 1) == "zero1.json"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_without_zero_is_refused(precision: str) -> None:
    with pytest.raises(UserError, match=f"zero_stage=0 with {precision}"):
        engine_config(recipe_for(0, False, precision), torch.device("cpu"), 1, None)
