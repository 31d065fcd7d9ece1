"""Shipped DeepSpeed files are filled from the recipe and accepted by DeepSpeed; a user's file and the recipe agree."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_metaxlm.deepspeed_adapter.config_files import (
    follow_file,
    lost_settings,
    refusals_in_words,
    result_settings,
    shipped_file,
)
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.training.engine.engine import engine_config
from dist_metaxlm.training.run.run_folder import PhaseFolder

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
    config = engine_config(recipe, torch.device(device), 4)
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
    here = torch.device("cpu")
    assert engine_config(followed, here, 2) == engine_config(wanted, here, 2), "nothing of the file is lost"
    assert lost_settings(followed, wanted) == []
    assert result_settings(followed) == result_settings(wanted) == {}


@pytest.mark.parametrize(
    ("content", "overrides", "words"),
    [
        ({"bf16": {"enabled": True}}, ["training.precision=fp32"], "set training.precision=auto"),
        ({"bf16": {"enabled": True}}, [], "has bf16 without ZeRO"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 0}}, [], 'write "zero_optimization": {"stage": 1}'),
        ({"bf16": {"enabled": "auto"}}, [], "bf16.enabled: auto, which the recipe has no value for; give a value or"),
        ({"zero_optimization": {"stage": 7}}, [], "parallel.zero_stage: Input should be 0, 1, 2 or 3"),
        ({"bf16": True}, [], "bf16: true, but it is a section"),
        ({"zero_optimization": None}, [], "zero_optimization: null, but it is a section"),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": "cpu"}},
            [],
            'offload_optimizer: "cpu", but it is a section',
        ),
        ({"zero_optimization": {"stage": 2}}, ["parallel.pipeline=2"], "set parallel.zero_stage=1"),
        ({"optimizer": {"type": "AdamW"}}, [], "the recipe's section optimizer decides it; remove it"),
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
    found = engine_config(follow_file(load_recipe("quickstart"), str(file)), torch.device("cuda"), 2)
    assert found["zero_optimization"]["offload_param"]["pin_memory"] is True


def test_an_unknown_auto_and_a_broken_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}))
    with pytest.raises(UserError, match="reduce_bucket_size: auto"):
        follow_file(load_recipe("quickstart"), str(file))
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON at line 1"):
        follow_file(load_recipe("quickstart"), str(file))
    file.write_text('{"train_batch_size": 7, "gradient_accumulation_steps": "auto"}')
    with pytest.raises(UserError, match=r'train_batch_size follows from .* write "auto" there or leave it out'):
        follow_file(load_recipe("quickstart"), str(file))


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
        engine_config(recipe_for(0, False, precision), torch.device("cpu"), 1)


OWN = {
    "gradient_clipping": 0.05,
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "allgather_bucket_size": 1234},
    "bf16": {"enabled": True, "check_grad_overflow": False},
    "data_types": {"grad_accum_dtype": "fp32"},
    "steps_per_print": 7,
}


def own_recipe(tmp_path: Path, content: dict[str, Any], *overrides: str) -> Recipe:
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    return follow_file(load_recipe("quickstart", overrides), str(file))


def test_what_a_file_says_is_in_the_recipe_and_is_resumed_from_there(tmp_path: Path) -> None:
    recipe = own_recipe(tmp_path, OWN)
    assert (recipe.parallel.zero_stage, recipe.training.precision, recipe.optimizer.clip_norm) == (2, "bf16", 0.05)
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(recipe))
    again = follow_file(load_recipe(written), None)
    assert again == recipe
    config = engine_config(again, torch.device("cpu"), 2)
    assert config["gradient_clipping"] == 0.05
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 5e8, "allgather_bucket_size": 1234}
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert config["steps_per_print"] == 7
    other = follow_file(load_recipe(written, ["parallel.zero_stage=3", "parallel.offload_optimizer=true"]), None)
    zero = engine_config(other, torch.device("cpu"), 2)["zero_optimization"]
    assert (zero["stage"], zero["offload_optimizer"], zero["allgather_bucket_size"]) == (3, {"device": "cpu"}, 1234)


def test_a_resumed_run_does_not_lose_a_file_in_silence(tmp_path: Path) -> None:
    content = OWN
    recipe, plain = own_recipe(tmp_path, content), load_recipe("quickstart")
    lost = ["zero_optimization.reduce_bucket_size", "zero_optimization.allgather_bucket_size"]
    assert lost_settings(recipe, plain) == [*lost, "bf16.check_grad_overflow", "steps_per_print"]
    assert lost_settings(recipe, recipe) == lost_settings(plain, recipe) == []
    assert result_settings(recipe) == {"bf16.check_grad_overflow": False}
    folder = PhaseFolder(tmp_path / "run", "meta")
    folder.start(recipe)
    folder.check(recipe)
    with pytest.raises(
        UserError, match=r"was trained with the DeepSpeed settings .*steps_per_print, and this start has none"
    ):
        folder.check(plain)
    faster = own_recipe(tmp_path, content | {"zero_optimization": {"stage": 2, "reduce_bucket_size": 10}})
    folder.check(faster)  # only speed and memory differ
    other = own_recipe(tmp_path, content | {"bf16": {"enabled": True}})
    with pytest.raises(UserError, match=r"deepspeed\.bf16\.check_grad_overflow was False, now None"):
        folder.check(other)
    with pytest.raises(UserError, match=r"optimizer\.clip_norm was 0\.05, now 1\.0"):
        folder.check(own_recipe(tmp_path, {key: value for key, value in content.items() if key != "gradient_clipping"}))


def test_sums_in_half_precision_are_part_of_what_is_learnt(tmp_path: Path) -> None:
    half = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    assert result_settings(own_recipe(tmp_path, half)) == {"data_types.grad_accum_dtype": "bf16"}
    assert result_settings(own_recipe(tmp_path, half | {"data_types": {"grad_accum_dtype": "fp32"}})) == {}
    assert result_settings(own_recipe(tmp_path, {"zero_optimization": {"stage": 1}})) == {}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("zero_optimization: {stage: 2}", "zero_optimization.stage is parallel.zero_stage; remove it from the section"),
        ("train_batch_size: 3", "train_batch_size is counted by the recipe; remove it"),
        ("zero_optimization: {round_robin_gradients: true}", "refused: DeepSpeed then saves the weights of other"),
        ("zero_optimisation: {}", "did you mean zero_optimization?"),
    ],
)
def test_the_section_of_a_recipe_is_checked_too(section: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        follow_file(load_recipe("quickstart", [f"deepspeed={{{section}}}"]), None)
    assert words in str(caught.value)


def test_what_deepspeed_refuses_of_a_users_fields_is_a_sentence() -> None:
    words = r"settings of --deepspeed_config \(a\.b\): hpZ group of 3; correct or remove them$"
    with pytest.raises(UserError, match=words), refusals_in_words(["a.b"]):
        raise AssertionError("\n   hpZ group of 3.\n")
    with pytest.raises(AssertionError), refusals_in_words([]):
        raise AssertionError
