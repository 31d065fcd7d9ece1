"""Every field that the installed DeepSpeed reads of a configuration is decided by the recipe, passed on, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from dist_metaxlm.deepspeed_adapter.config_check import passed, problems
from dist_metaxlm.deepspeed_adapter.config_fields import SECTIONS, Field
from dist_metaxlm.recipe.load import load_recipe


class Recorded(dict):  # type: ignore[type-arg]
    """A configuration that notes which of its keys are asked for."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __copy__(self) -> Recorded:
        return self

    def keys(self) -> Any:
        return self

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


def read_by_deepspeed(section: str = "") -> set[str]:
    """Keys that DeepSpeedConfig asks for, of the whole or of one section that is no pydantic model."""
    from deepspeed.runtime.config import DeepSpeedConfig

    inner = Recorded({})
    whole = Recorded({"train_batch_size": 1} | ({section: inner} if section else {}))
    DeepSpeedConfig(whole)
    return inner.asked if section else whole.asked


def names_of(model: type[BaseModel]) -> set[str]:
    return {info.alias or name for name, info in model.model_fields.items()}


def models() -> dict[str, type[BaseModel]]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.zero import offload_config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
        "bf16": precision_config.DeepSpeedBF16Config,
        "fp16": precision_config.DeepSpeedFP16Config,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "comms_logger": CommsLoggerConfig,
    }


def sections_in(section: str) -> set[str]:
    prefix = f"{section}." if section else ""
    inner = {name[len(prefix) :] for name in SECTIONS if name.startswith(prefix) and name not in ("", section)}
    return {name for name in inner if "." not in name}


def test_all_that_deepspeed_asks_for_at_the_top_is_classed() -> None:
    from deepspeed.runtime import config

    removed = set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert removed <= set(SECTIONS[""])
    assert all(SECTIONS[""][name].use == "refused" for name in removed)
    assert read_by_deepspeed() | removed == set(SECTIONS[""]) | sections_in("")


def test_all_fields_of_its_models_are_classed() -> None:
    from deepspeed.runtime import config

    removed = set(config._REMOVED_ZERO_CONFIG_KEYS)
    for section, model in models().items():
        more = removed if section == "zero_optimization" else set()
        assert names_of(model) | more == set(SECTIONS[section]) | sections_in(section), section
    assert read_by_deepspeed("data_types") == set(SECTIONS["data_types"])
    assert read_by_deepspeed("timers") == sections_in("timers")
    assert {"", "timers", "data_types"} | set(models()) == set(SECTIONS)


KINDS = {"bool": bool, "int": int, "number": float, "text": str, "texts": list}


def types_in(annotation: Any) -> set[Any]:
    parts = get_args(annotation)
    return set().union(*map(types_in, parts)) if parts and get_origin(annotation) is not list else {annotation}


def test_kinds_are_those_of_its_models() -> None:
    for section, model in models().items():
        for name, info in model.model_fields.items():
            field = SECTIONS[section].get(info.alias or name)
            if field is not None and field.kind in KINDS and name != "stage":
                assert KINDS[field.kind] in types_in(info.annotation) | {list}, f"{section}.{name}: {info.annotation}"


def test_what_is_allowed_of_a_refused_field_is_its_default_there() -> None:
    for section, model in models().items():
        for name, info in model.model_fields.items():
            field = SECTIONS[section].get(info.alias or name)
            if field is not None and field.default is not None:
                assert info.default == field.default, f"{section}.{name}"


def test_each_recipe_field_exists() -> None:
    recipe = load_recipe("quickstart").model_dump()
    for fields in SECTIONS.values():
        for field in fields.values():
            if field.recipe:
                section, name = field.recipe.split(".")
                assert name in recipe[section]


SAMPLES: dict[str, Any] = {"bool": True, "int": 3, "number": 0.5, "text": "info", "texts": ["all_reduce"], "dtype": "fp32"}
ALL = [(section, name, field) for section, fields in SECTIONS.items() for name, field in fields.items()]


def nested(section: str, name: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = {name: value}
    for part in reversed(section.split(".") if section else []):
        config = {part: config}
    return config


@pytest.mark.parametrize(("section", "name", "field"), ALL, ids=[f"{section}.{name}" for section, name, _ in ALL])
def test_every_field_is_taken_or_refused_in_a_sentence(section: str, name: str, field: Field) -> None:
    place = f"{section}.{name}" if section else name
    if field.use == "refused":
        for harmless in (None, False, {}, {"enabled": False}, field.default):
            assert problems(nested(section, name, harmless)) == [], place
        for wanted in ({"enabled": True}, "x", 0.31):
            [problem] = problems(nested(section, name, wanted))
            assert problem.startswith(f"{place}: ")
            assert "refused: " in problem
            assert problem.rsplit("; ")[-1].startswith(("remove", "write", "leave")), problem
        return
    [problem] = problems(nested(section, name, {"a": 1}))
    assert problem.startswith(place)
    if field.use == "recipe":
        assert passed(nested(section, name, "auto")) == {}
        return
    value = "cpu" if field.kind == "device" else SAMPLES[field.kind]
    assert passed(nested(section, name, value)) == nested(section, name, value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"zero_optimisation": {"stage": 3}}, "unknown key zero_optimisation, did you mean zero_optimization?"),
        ({"zero_optimization": {"stag": 3}}, "unknown key zero_optimization.stag, did you mean stage?"),
        ({"zero_optimization": {"stage": "1"}}, 'stage: "1" is not an integer of at least 0'),
        (
            {"zero_optimization": {"cpu_offload": True}},
            'cpu_offload: true is refused: this is an old name; write "offload_o',
        ),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "reduce_bucket_size: -1 is not an integer"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, 'device: "nvme" is neither cpu nor none'),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param needs stage 3, but stage is 2",
        ),
        ({"sparse_gradients": True}, "sparse_gradients: true is refused: DeepSpeed no longer has it"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "mics_shard_size: 2 is refused: DeepSpeed no longer"),
        (
            {"prescale_gradients": True, "gradient_predivide_factor": 2.0, "zero_optimization": {"stage": 2}},
            "prescale_gradients: true is incompatible with zero_optimization.stage 2 and its reduce_scatter",
        ),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16.enabled and fp16.enabled are both true"),
        ({"data_types": {"grad_accum_dtype": "fp16"}, "bf16": {"enabled": True}}, 'write "fp32" or "bf16"'),
        ({"bfloat16": {"enabled": True}}, 'bfloat16: {"enabled": true} is refused: this is an old name; write "bf16"'),
        ({"communication_data_type": "int8"}, 'communication_data_type: "int8" is none of fp32, fp16, bf16'),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(config: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in problems(config)), problems(config)


def test_all_problems_are_named_at_once() -> None:
    assert len(problems({"a": 1, "amp": {"enabled": True}, "bf16": 3, "fp16": {"hysteresis": "x"}})) == 4
