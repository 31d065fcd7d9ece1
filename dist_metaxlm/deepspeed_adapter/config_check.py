"""Validates a user's DeepSpeed configuration, with error texts, and selects the fields that go to DeepSpeed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from dist_metaxlm.deepspeed_adapter.config_fields import SECTIONS, Field, Kind, known_names
from dist_metaxlm.text import did_you_mean

FILLED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "initial_scale_power",
    "loss_scale_window",
    "pin_memory",
    "stage3_param_persistence_threshold",
)
"""Fields that may be `auto`."""
_DTYPES = ("fp32", "fp16", "bf16")


def fields_in(config: Mapping[str, object], section: str = "") -> Iterator[tuple[str, object]]:
    """(place, value) of all fields, known or unknown; fields of sections as `section.field`."""
    for name, value in config.items():
        place = f"{section}.{name}" if section else name
        if place in SECTIONS and isinstance(value, Mapping):
            yield from fields_in(value, place)
        else:
            yield place, value


def field_at(place: str) -> Field | None:
    """The rule for the field `place`; None if it is unknown."""
    section, _, name = place.rpartition(".")
    return SECTIONS.get(section, {}).get(name)


def problems(config: Mapping[str, object]) -> list[str]:
    """All errors in the fields of a file, each with its remedy."""
    texts = list(_flat_keys(config))
    texts = texts or [problem for place, value in fields_in(config) if (problem := _problem(place, value))]
    return texts or [problem for problem in _contradictions(dict(fields_in(config))) if problem]


def _flat_keys(config: Mapping[str, object], section: str = "") -> Iterator[str]:
    """Errors for keys such as `zero_optimization.stage`, which DeepSpeed ignores, and for empty ones."""
    for name, value in config.items():
        place = f"{section}.{name}" if section else name
        if not name:
            yield f"{section or 'the file'} has an empty key; remove it"
        elif "." in name:
            head, _, rest = name.partition(".")
            yield f'unknown key "{name}": DeepSpeed knows no dots in keys; write "{head}": {{"{rest}": ...}}'
        elif place in SECTIONS and isinstance(value, Mapping):
            yield from _flat_keys(value, place)


def recorded_problems(config: Mapping[str, object]) -> list[str]:
    """The same for the section `deepspeed` of a recipe, which may only hold fields that go to DeepSpeed."""
    texts = list(_flat_keys(config))
    for place, value in fields_in({} if texts else config):
        field = field_at(place)
        problem = _problem(place, value)
        if field is not None and field.use == "recipe":
            problem = f"{place} is {field.recipe or 'counted by the recipe'}; remove it from the section deepspeed"
        texts += [problem] if problem else []
    return texts


def passed(config: Mapping[str, object]) -> dict[str, object]:
    """The fields that are passed to DeepSpeed unchanged, in their sections."""
    kept: dict[str, Any] = {}
    for place, value in fields_in(config):
        field = field_at(place)
        if field is not None and field.use == "passed" and value is not None:
            *sections, name = place.split(".")
            inner = kept
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = value
    return kept


def _problem(place: str, value: object) -> str | None:
    if place in SECTIONS:
        return f'{place}: {json.dumps(value)}, but it is a section; write "{place.split(".")[-1]}": {{}} or leave it out'
    field, name = field_at(place), place.split(".")[-1]
    if field is None:
        section = place.rpartition(".")[0]
        return f"unknown key {place}{did_you_mean(name, known_names(section))} correct or remove it"
    if field.use == "refused":
        return None if _off(value) or value == field.default else f"{place}: {json.dumps(value)} is refused: {field.reason}"
    if value == "auto":
        if name in FILLED:
            return None
        return f"{place}: auto, which the recipe has no value for; give a value or leave it out"
    if field.use == "recipe" and not field.recipe:
        return (
            f"{place} follows from the recipe's batch_tokens, parallel.micro_batch_tokens and the ranks; "
            'write "auto" there or leave it out'
        )
    wanted = None if value is None and field.use == "passed" else _wrong_kind(field.kind, value)
    return f"{place}: {json.dumps(value)} is {wanted}; correct it or leave it out" if wanted else None


def _off(value: object) -> bool:
    """Whether a value is off, or a section is disabled by its `enabled`."""
    if isinstance(value, Mapping):
        return not value or value.get("enabled") is False
    return value is None or value is False or value == [] or (value == 0 and not isinstance(value, bool))


def _wrong_kind(kind: Kind, value: object) -> str:
    """Error text for a value of the wrong kind; empty if the kind is right."""
    try:
        amount = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        amount = math.inf
    number = math.isfinite(amount) and amount >= 0
    right = {
        "bool": isinstance(value, bool),
        "int": number and amount.is_integer(),
        "number": number,
        "text": isinstance(value, str),
        "texts": isinstance(value, list) and all(isinstance(item, str) for item in value),
        "dtype": value in _DTYPES,
        "device": value in ("cpu", "none"),
    }
    words = {
        "bool": "neither true nor false",
        "int": "not an integer of at least 0",
        "number": "not a number of at least 0",
        "text": "not a string",
        "texts": "not a list of strings",
        "dtype": f"none of {', '.join(_DTYPES)}",
        "device": "neither cpu nor none",
    }
    return "" if right[kind] else words[kind]


def _contradictions(values: Mapping[str, object]) -> Iterator[str | None]:
    """Combinations of fields that DeepSpeed refuses."""
    stage = values.get("zero_optimization.stage", 0)
    scattered = stage in (2, 3) and values.get("zero_optimization.reduce_scatter") is not False
    precision = next((name for name in ("bf16", "fp16") if values.get(f"{name}.enabled")), "fp32")
    sums = values.get("data_types.grad_accum_dtype") or precision
    if values.get("bf16.enabled") and values.get("fp16.enabled"):
        yield "bf16.enabled and fp16.enabled are both true; set one of them to false"
    for name, plain in (("prescale_gradients", False), ("gradient_predivide_factor", 1)):
        if scattered and (values.get(name) or plain) != plain:
            yield (
                f"{name}: {json.dumps(values[name])} is incompatible with zero_optimization.stage {stage} and its "
                "reduce_scatter; remove it, or set reduce_scatter to false"
            )
    if sums not in ("fp32", precision):
        yield f'data_types.grad_accum_dtype: "{sums}" is incompatible with {precision}; write "fp32" or "{precision}"'
    if values.get("zero_optimization.offload_param.device", "none") != "none" and stage != 3:
        yield f"zero_optimization.offload_param needs stage 3, but stage is {stage}; set stage to 3 or remove the section"
