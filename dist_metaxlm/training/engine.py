"""From a recipe to a DeepSpeed engine: parameter groups, AdamW, and the engine's JSON with its `auto` fields filled."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_metaxlm.errors import UserError
from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.attention import choose_backward
from dist_metaxlm.parallel.mpu import deepspeed_mpu
from dist_metaxlm.recipe.schema import OptimizerConfig, Recipe
from dist_metaxlm.training import optimizer_state


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay, vectors (norms, biases) without."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def resolve_precision(recipe: Recipe, device: torch.device) -> str:
    """`fp32` or `bf16`; `auto` means bf16 on CUDA devices."""
    if recipe.training.precision != "auto":
        return recipe.training.precision
    return "bf16" if device.type == "cuda" else "fp32"


def engine_config(recipe: Recipe, device: torch.device, data_size: int, config_file: str | None) -> dict[str, Any]:
    """DeepSpeed's configuration: the given file, or the shipped one for the recipe's ZeRO stage and precision.

    Fields that say `auto` are filled from the recipe.

    Raises:
        UserError: for a file that is missing, not JSON, or asks for what the recipe decides.
    """
    precision = resolve_precision(recipe, device)
    suffix = "_bf16" if precision == "bf16" else ""
    if config_file is None:
        name = f"zero{recipe.parallel.zero_stage}{suffix}.json"
        if name == "zero0_bf16.json":
            # DeepSpeed would take an fp16 optimiser that makes a dummy Adam step at start: another curve than ZeRO-1.
            raise UserError("parallel.zero_stage=0 with bf16 has no fp32 master weights in DeepSpeed; set "
                            "parallel.zero_stage=1 (on one rank it is the same) or training.precision=fp32")
        text = (resources.files("dist_metaxlm.ds_configs") / name).read_text(encoding="utf-8")
    else:
        name = config_file
        path = Path(config_file)
        if not path.is_file():
            raise UserError(f"--deepspeed_config {config_file}: no such file; the shipped ones are in ds_configs/")
        text = path.read_text(encoding="utf-8")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is not JSON at line {error.lineno}: {error.msg}; mend that line") from None
    for key in ("optimizer", "scheduler"):
        if key in config:
            raise UserError(f"{name} has a section {key!r}, which the recipe decides; remove it there")
    automatic = {"train_batch_size": data_size, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
                 "gradient_clipping": recipe.optimizer.clip_norm}
    for key, value in automatic.items():
        if config.get(key, "auto") == "auto":
            config[key] = value
    # A step may hold any number of micro-steps (one objective may take more of them than another): the loop owns the
    # boundary and calls step() once; DeepSpeed reduces gradients there.
    config["managed_gradient_accumulation"] = False
    return config


def build_engine(model: nn.Module, recipe: Recipe, device: torch.device, data_size: int,
                 config_file: str | None = None) -> Any:
    """A DeepSpeed engine around `model` with our AdamW over `data_size` data-parallel ranks; rates are set by the loop."""
    import deepspeed

    registry.force(recipe.training.kernels)
    choose_backward(recipe.training.attention_backward)
    optimizer_config = recipe.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(model, optimizer_config), lr=0.0, betas=(optimizer_config.beta1, optimizer_config.beta2),
        eps=optimizer_config.eps, fused=True)
    config = engine_config(recipe, device, data_size, config_file)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False,
                                         mpu=deepspeed_mpu())
    optimizer_state.create_adam_state(engine)
    if recipe.parallel.zero_stage == 0:
        _keep_norm(engine)
    return engine


def _keep_norm(engine: Any) -> None:
    """Let an engine without ZeRO keep the gradient norm it clips by, as it does with ZeRO (DeepSpeed 0.19.8 drops it)."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(parameters=engine.module.parameters(),
                                                   max_norm=engine.gradient_clipping(), mpu=engine.mpu)

    engine.clip_fp32_gradients = clip


def set_learning_rate(engine: Any, value: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value
