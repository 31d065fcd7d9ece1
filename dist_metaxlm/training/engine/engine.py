"""From a recipe to a DeepSpeed engine: parameter groups, AdamW, and the engine's JSON with its `auto` fields filled."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.config_files import fill_automatic, read_config, shipped_file
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.gradient_norm import use_exact_norms
from dist_metaxlm.deepspeed_adapter.loss_scaling import check_fp16, prepare_scaler
from dist_metaxlm.deepspeed_adapter.mpu import deepspeed_mpu
from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.attention.dispatch import choose_backward
from dist_metaxlm.modeling.checkpointing import set_recompute
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.schema import OptimizerConfig, Recipe
from dist_metaxlm.training.engine.muon import MuonWithAdamW, is_block_matrix


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay, vectors (norms, biases) without; with Muon a third, its matrices, first.

    The copy of the token embedding on a pipeline's last stage is in neither: it is sent there (training/engine/pipeline.py).
    """
    own = [(name, p) for name, p in model.named_parameters() if not getattr(p, "ds_pipe_replicated", False)]
    orthogonal = [p for name, p in own if config.name == "muon" and is_block_matrix(name, p)]
    special = {id(p) for p in orthogonal}
    matrices = [p for _, p in own if p.ndim >= 2 and id(p) not in special]
    vectors = [p for _, p in own if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": orthogonal, "weight_decay": config.weight_decay, "orthogonal": True, "rate": config.matrix_rate},
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """The recipe's optimiser over the parameters of `model`, with a learning rate of 0."""
    config = recipe.optimizer
    groups = parameter_groups(model, config)
    if config.name == "muon":
        return MuonWithAdamW(groups, config, recipe.model)
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def resolve_precision(recipe: Recipe, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` means bf16 on CUDA devices that compute in it (from compute capability 8.0 on)."""
    if recipe.training.precision != "auto":
        return recipe.training.precision
    # Older devices emulate it, more slowly than they compute in fp32; torch counts that as support unless told not to.
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def engine_config(recipe: Recipe, device: torch.device, data_size: int, config_file: str | None) -> dict[str, Any]:
    """DeepSpeed's configuration: the given file, or the shipped one for the recipe's ZeRO stage and precision.

    Fields that say `auto` are filled from the recipe.

    Raises:
        UserError: for a file that is missing, not JSON, or asks for what the recipe decides.
    """
    precision = resolve_precision(recipe, device)
    shipped = config_file is None
    config = read_config(shipped_file(recipe, precision, data_size) if config_file is None else config_file, shipped)
    fill_automatic(config, recipe, device, data_size)
    # DeepSpeed's throughput timer waits for the device before every micro-step; the loop has a clock of its own.
    config.setdefault("timers", {}).setdefault("throughput", {"enabled": False})
    if recipe.optimizer.name != "adamw":
        config["zero_allow_untested_optimizer"] = True  # DeepSpeed knows its own optimisers and torch's
    if recipe.parallel.pipeline > 1:
        # Cutting what travels over the tensor ranks remembers the first micro-batch's shape; ours differ by objective.
        config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    else:
        # A step may hold any number of micro-steps (one objective may take more of them than another): the loop owns the
        # boundary and calls step() once; DeepSpeed reduces gradients there.
        config["managed_gradient_accumulation"] = False
    return config


def build_engine(
    model: nn.Module, recipe: Recipe, device: torch.device, data_size: int, config_file: str | None = None
) -> Engine:
    """A DeepSpeed engine around `model` with our AdamW over `data_size` data-parallel ranks; rates are set by the loop."""
    import deepspeed

    check_fp16(resolve_precision(recipe, device))
    set_recompute(model, recipe.parallel)
    registry.force(recipe.training.kernels)
    choose_backward(recipe.training.attention_backward)
    optimizer = build_optimizer(model, recipe)
    config = engine_config(recipe, device, data_size, config_file)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False, mpu=deepspeed_mpu()
    )
    prepare_scaler(engine)
    optimizer_state.create_adam_state(engine)
    if isinstance(optimizer, MuonWithAdamW):
        optimizer.attach(engine)
    use_exact_norms(engine)
    if data_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # DeepSpeed would copy all gradients to average them with nobody's
    if isinstance(model, PretrainingModel):
        _ = model.memory  # made now, from the weights that the phase begins with
    return cast(Engine, engine)


def clear_gradients(engine: Engine) -> None:
    """Leave no gradient of an earlier step behind; to be called before a step's first backward pass.

    ZeRO-3 (DeepSpeed 0.19.8) overwrites a parameter's part in the first micro-step and adds in the others, so a parameter
    that an objective does not reach would be updated with what an earlier step left there. Other stages count it as zero.
    """
    parts = getattr(engine.optimizer, "grad_partitions_flat_buffer", None)
    if parts is None:
        return
    parts.zero_()
    for master in engine.optimizer.fp32_partitioned_groups_flat if engine.optimizer.offload_optimizer else ():
        if master.grad is not None:
            master.grad.zero_()


def set_learning_rate(engine: Engine, value: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value * group.get("rate", 1.0)
