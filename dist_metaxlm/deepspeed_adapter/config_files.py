"""DeepSpeed's JSON files: the shipped one for a recipe's ZeRO stage, offload and precision, or the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Recipe

_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
_FILLED = (*_BATCH, "initial_scale_power", "loss_scale_window", "pin_memory", "stage3_param_persistence_threshold")
"""Fields that may say `auto`."""
_SECTIONS = ("bf16", "fp16", "zero_optimization", "offload_optimizer")


def shipped_file(recipe: Recipe, precision: str, data_size: int) -> str:
    """Name of the file in ds_configs/ for a recipe that runs in `precision` with `data_size` copies of the model.

    In fp32 a process alone has nobody to share with, and ZeRO would keep its weights and gradients twice: it gets ZeRO-0.

    Raises:
        UserError: for ZeRO-0 in half precision.
    """
    layout = recipe.parallel
    if layout.zero_stage == 0 and precision != "fp32":
        # DeepSpeed would take an fp16 optimiser that makes a dummy Adam step at start: another curve than ZeRO-1.
        raise UserError(
            f"parallel.zero_stage=0 with {precision} has no fp32 master weights in DeepSpeed; set "
            "parallel.zero_stage=1 (on one rank it is the same) or training.precision=fp32"
        )
    alone = layout.tensor == layout.pipeline == data_size == 1
    stage = 0 if alone and precision == "fp32" and not layout.offload_optimizer else layout.zero_stage
    offload = "_offload" if layout.offload_optimizer else ""
    return f"zero{stage}{offload}{'' if precision == 'fp32' else '_' + precision}.json"


def read_config(file: str, shipped: bool) -> dict[str, Any]:
    """A DeepSpeed configuration, `auto` fields still in it.

    Raises:
        UserError: for a file that is missing, not JSON, or asks for what the recipe decides or cannot fill.
    """
    path = resources.files("dist_metaxlm.ds_configs") / file if shipped else Path(file)
    if not path.is_file():
        raise UserError(f"--deepspeed_config {file}: no such file; the shipped ones are in ds_configs/")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON at line {error.lineno}: {error.msg}; mend that line") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is no JSON object; start from one of ds_configs/")
    fixed = [key for key in _BATCH[:3] if config.get(key, "auto") != "auto"]
    if fixed and not shipped:
        raise UserError(
            f"{file} sets {', '.join(fixed)}, which follow from the recipe's batch_tokens, "
            'parallel.micro_batch_tokens and the ranks; write "auto" there or leave them out'
        )
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise UserError(f"{file} has a section {key!r}, which the recipe decides; remove it there")
    for key, value in _fields(config):
        if value == "auto" and key not in _FILLED:
            raise UserError(
                f"the DeepSpeed file {file} says {key}: auto, which the recipe has no value for; give a value "
                "there or leave it out"
            )
        if key in _SECTIONS and not isinstance(value, dict):
            raise UserError(
                f"the DeepSpeed file {file} says {key}: {json.dumps(value)}, and it is a section, such as "
                f'"{key}": {{}}; write that or leave it out'
            )
    return config


def _fields(section: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All fields of a configuration and of the sections in it."""
    for key, value in section.items():
        yield key, value
        if isinstance(value, dict):
            yield from _fields(value)


def fill_automatic(config: dict[str, Any], recipe: Recipe, device: torch.device, data_size: int) -> None:
    """Put what the recipe says into the fields of `config` that say `auto`; the four of the batch may be missing."""
    for key in _BATCH:
        config.setdefault(key, "auto")
    values = {
        "train_batch_size": data_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.optimizer.clip_norm,
        "initial_scale_power": recipe.training.fp16_scale_power,
        "loss_scale_window": recipe.training.fp16_scale_window,
        "pin_memory": device.type == "cuda",
        # Norms and biases stay whole on every rank: gathering them would cost more than they take.
        "stage3_param_persistence_threshold": 10 * recipe.model.hidden,
    }
    _fill(config, values)


def _fill(section: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in section.items():
        if value == "auto":
            section[key] = values[key]
        elif isinstance(value, dict):
            _fill(value, values)


def follow_file(recipe: Recipe, file: str | None) -> Recipe:
    """The recipe with ZeRO stage, offload and precision as the file of --deepspeed_config has them.

    Raises:
        UserError: when the recipe names another precision than the file, it has none of ours without ZeRO, or the result
            is no legal recipe.
    """
    if file is None:
        return recipe
    config = read_config(file, shipped=False)
    zero = config.get("zero_optimization", {})
    precision = next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")
    if recipe.training.precision not in ("auto", precision):
        raise UserError(
            f"--deepspeed_config {file} trains in {precision}, the recipe says training.precision="
            f"{recipe.training.precision}; set training.precision=auto or give another file"
        )
    if precision != "fp32" and zero.get("stage", 0) == 0:
        raise UserError(
            f"--deepspeed_config {file} has {precision} without ZeRO, where DeepSpeed has no fp32 masters "
            'as ours; write "zero_optimization": {"stage": 1} into it (on one rank it is the same)'
        )
    offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    values = recipe.model_dump()
    values["parallel"] |= {"zero_stage": zero.get("stage", 0), "offload_optimizer": offload}
    values["training"]["precision"] = precision
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        reason = "; ".join(
            ".".join(map(str, item["loc"])) + ": " + item["msg"].removeprefix("Value error, ") for item in error.errors()
        )
        raise UserError(f"--deepspeed_config {file} does not go with recipe {recipe.name}: {reason}") from None
