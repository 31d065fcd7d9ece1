"""DeepSpeed's configuration: the shipped file for a recipe's ZeRO stage, offload and precision, or the user's fields.

A file of `--deepspeed_config` becomes part of the recipe: values with a recipe field set that field, fields that only
DeepSpeed reads go to the section `deepspeed`, so both are in the run's recipe.yaml. After that only the recipe is used.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dist_metaxlm.deepspeed_adapter.config_check import field_at, fields_in, passed, problems, recorded_problems
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Recipe

_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def shipped_file(recipe: Recipe, precision: str, data_size: int) -> str:
    """Name of the file in ds_configs/ for a recipe that runs in `precision` with `data_size` copies of the model.

    In fp32 a single rank uses ZeRO-0: it has no ranks to shard over, and ZeRO would keep weights and gradients twice.

    Raises:
        UserError: for ZeRO-0 in half precision.
    """
    layout = recipe.parallel
    _require_masters(recipe, precision)
    alone = layout.tensor == layout.pipeline == data_size == 1
    stage = 0 if alone and precision == "fp32" and not layout.offload_optimizer else layout.zero_stage
    offload = "_offload" if layout.offload_optimizer else ""
    return f"zero{stage}{offload}{'' if precision == 'fp32' else '_' + precision}.json"


def _require_masters(recipe: Recipe, precision: str) -> None:
    if recipe.parallel.zero_stage == 0 and precision != "fp32":
        # DeepSpeed would use an fp16 optimiser that makes a dummy Adam step at start, so the curve would differ from ZeRO-1.
        raise UserError(
            f"parallel.zero_stage=0 with {precision} has no fp32 master weights in DeepSpeed; set "
            "parallel.zero_stage=1 (on one rank it is the same) or training.precision=fp32"
        )


def read_file(file: str) -> dict[str, Any]:
    """A user's DeepSpeed configuration, with its `auto` fields.

    Raises:
        UserError: for a file that is missing or not JSON, or for fields that are unknown, twice there, refused or of a wrong
            kind.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--deepspeed_config {file}: no such file; the shipped ones are in ds_configs/")
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=partial(_once, file))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON at line {error.lineno}: {error.msg}; correct that line") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file} has a number or a nesting that is too large to read; correct it") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a JSON object; start from one of ds_configs/")
    wrong = problems(config)
    if wrong:
        raise UserError(f"the DeepSpeed file {file}: {'; '.join(wrong)}")
    return config


def _once(file: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refusing a key that occurs twice: JSON readers silently take the last."""
    twice = next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{file} has the key {twice!r} twice in one section; remove one of them")
    return dict(pairs)


def follow_file(recipe: Recipe, file: str | None) -> Recipe:
    """The recipe with the values of the file of --deepspeed_config.

    Raises:
        UserError: when the file is wrong (`read_file`), the recipe names another precision than the file, it is in half
            precision without ZeRO, or the result is not a valid recipe.
    """
    if file is None:
        wrong = recorded_problems(recipe.deepspeed or {})
        if wrong:
            raise UserError(f"recipe {recipe.name}, section deepspeed: {'; '.join(wrong)}")
        return recipe
    config = read_file(file)
    zero = config.get("zero_optimization", {})
    precision = next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")
    if recipe.training.precision not in ("auto", precision):
        raise UserError(
            f"--deepspeed_config {file} trains in {precision}, but the recipe has training.precision="
            f"{recipe.training.precision}; set training.precision=auto or give another file"
        )
    if precision != "fp32" and zero.get("stage", 0) == 0:
        raise UserError(
            f"--deepspeed_config {file} has {precision} without ZeRO, where DeepSpeed has no fp32 masters "
            'as ours; write "zero_optimization": {"stage": 1} into it (on one rank it is the same)'
        )
    values = recipe.model_dump()
    for place, value in fields_in(config):
        field = field_at(place)
        if field is not None and field.use == "recipe" and field.recipe and value not in ("auto", None):
            section, name = field.recipe.split(".")
            values[section][name] = value
    offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    values["parallel"] |= {"zero_stage": zero.get("stage", 0), "offload_optimizer": offload}
    values["training"]["precision"] = precision
    values["deepspeed"] = passed(config)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        reason = "; ".join(
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")]))
            for item in error.errors()
        )
        raise UserError(f"--deepspeed_config {file} does not go with recipe {recipe.name}: {reason}") from None


def settings(recipe: Recipe, precision: str, device: torch.device, data_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe that runs in `precision` with `data_size` copies of the model.

    Raises:
        UserError: for ZeRO-0 in half precision.
    """
    config = _shipped(shipped_file(recipe, precision, data_size)) if recipe.deepspeed is None else _own(recipe, precision)
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
        # Norms and biases stay whole on every rank: gathering them would cost more than their memory.
        "stage3_param_persistence_threshold": 10 * recipe.model.hidden,
    }
    _fill(config, values)
    _adjust(config, recipe)
    return config


def _adjust(config: dict[str, Any], recipe: Recipe) -> None:
    """Set the fields that the training loop needs, in any configuration."""
    # DeepSpeed's throughput timer waits for the device before every micro-step; the loop has its own clock.
    config.setdefault("timers", {}).setdefault("throughput", {"enabled": False})
    if recipe.parallel.pipeline > 1:
        # Partitioned sends keep the first micro-batch's shape, but shapes differ by objective.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    else:
        # A step may hold any number of micro-steps (the number differs by objective): the loop owns the
        # boundary and calls step() once; DeepSpeed reduces gradients there.
        config["managed_gradient_accumulation"] = False


def _shipped(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((resources.files("dist_metaxlm.ds_configs") / name).read_text(encoding="utf-8"))
    return config


def _own(recipe: Recipe, precision: str) -> dict[str, Any]:
    """The recipe's section `deepspeed`, with the fields that the rest of the recipe sets."""
    _require_masters(recipe, precision)
    config: dict[str, Any] = copy.deepcopy(recipe.deepspeed or {})
    zero = config.setdefault("zero_optimization", {})
    zero["stage"] = recipe.parallel.zero_stage
    if recipe.parallel.offload_optimizer:
        zero.setdefault("offload_optimizer", {})["device"] = "cpu"
        config["zero_force_ds_cpu_optimizer"] = False  # AdamW is torch's
    else:
        zero.pop("offload_optimizer", None)
    if precision != "fp32":
        config.setdefault(precision, {})["enabled"] = True
    if precision == "fp16":
        config["fp16"] |= {"initial_scale_power": "auto", "loss_scale_window": "auto"}
    return config


def _fill(section: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in section.items():
        if value == "auto":
            section[key] = values[key]
        elif isinstance(value, dict):
            _fill(value, values)


def lost_settings(before: Recipe, now: Recipe) -> list[str]:
    """Fields of a DeepSpeed file that a phase was trained with and that would be dropped now.

    Fields that the shipped file also has are not included.
    """
    if before.deepspeed is None or now.deepspeed is not None:
        return []
    precision = before.training.precision
    shipped = dict(fields_in(_shipped(shipped_file(before, "fp32" if precision == "auto" else precision, 2))))
    return [place for place, value in fields_in(before.deepspeed) if shipped.get(place) != value]


def result_settings(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed fields that affect the training result and differ from the default, by place."""
    precision = recipe.training.precision
    defaults = {
        "data_types.grad_accum_dtype": "fp32" if recipe.deepspeed is None or precision == "auto" else precision,
        "fp16.hysteresis": 2,
        "fp16.min_loss_scale": 1,
        "bf16.check_grad_overflow": True,
        "gradient_predivide_factor": 1,
    }
    given = dict(fields_in(recipe.deepspeed or {}))
    changed = {
        place: value
        for place, value in given.items()
        if (field := field_at(place)) is not None and field.changes_results and value != defaults.get(place, False)
    }
    sums = given.get("data_types.grad_accum_dtype", defaults["data_types.grad_accum_dtype"])
    changed.pop("data_types.grad_accum_dtype", None)
    return changed | ({"data_types.grad_accum_dtype": sums} if sums != "fp32" else {})


@contextmanager
def refusals_in_words(fields: list[str]) -> Iterator[None]:
    """Report DeepSpeed's errors about the user's `fields` as a UserError; without fields, errors pass unchanged.

    Raises:
        UserError: naming the fields and DeepSpeed's reason.
    """
    try:
        yield
    except (AssertionError, ValueError, NotImplementedError, RuntimeError) as error:
        if not fields:
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"DeepSpeed refuses the settings of --deepspeed_config ({', '.join(fields)}): {reason.rstrip('.')}; "
            "correct or remove them"
        ) from error
