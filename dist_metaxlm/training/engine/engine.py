"""From a recipe to a DeepSpeed engine: parameter groups, AdamW, and the engine's JSON with its `auto` fields filled."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from dist_metaxlm.deepspeed_adapter import optimizer_state
from dist_metaxlm.deepspeed_adapter.config_check import fields_in
from dist_metaxlm.deepspeed_adapter.config_files import refusals_in_words, settings
from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.deepspeed_adapter.gradient_norm import use_exact_norms
from dist_metaxlm.deepspeed_adapter.gradients import prevent_stale_gradients
from dist_metaxlm.deepspeed_adapter.loss_scaling import check_fp16, prepare_scaler
from dist_metaxlm.deepspeed_adapter.mpu import deepspeed_mpu
from dist_metaxlm.deepspeed_adapter.parameter_shards import cut_parameters, part_shape
from dist_metaxlm.deepspeed_adapter.step_gate import gate_updates
from dist_metaxlm.deepspeed_adapter.version import check_version
from dist_metaxlm.deepspeed_adapter.weight_check import check_all_weights
from dist_metaxlm.kernels import registry
from dist_metaxlm.kernels.attention.dispatch import choose_backward
from dist_metaxlm.modeling.checkpointing import set_recompute
from dist_metaxlm.modeling.sharding import is_block_matrix
from dist_metaxlm.objectives.model import PretrainingModel
from dist_metaxlm.recipe.schema import OptimizerConfig, Recipe
from dist_metaxlm.training.engine.muon import MuonWithAdamW
from dist_metaxlm.training.engine.stable_adamw import StableAdamW

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Type of weights and activations by precision."""


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """Two groups: matrices with weight decay, vectors (norms, biases) without; with Muon a third, its matrices, first.

    The copy of the token embedding on a pipeline's last stage is in neither: it is sent there (training/engine/pipeline.py).
    """
    own = [(name, p) for name, p in model.named_parameters() if not getattr(p, "ds_pipe_replicated", False)]
    orthogonal = [p for name, p in own if config.name == "muon" and is_block_matrix(name, part_shape(p))]
    special = {id(p) for p in orthogonal}
    matrices = [p for _, p in own if len(part_shape(p)) >= 2 and id(p) not in special]
    vectors = [p for _, p in own if len(part_shape(p)) < 2]
    groups: list[dict[str, object]] = [
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
    if config.name == "stable_adamw":
        return StableAdamW(groups, config)
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def resolve_precision(recipe: Recipe, device: torch.device) -> str:
    """`fp32`, `bf16` or `fp16`; `auto` means bf16 on CUDA devices that compute in it (from compute capability 8.0 on)."""
    if recipe.training.precision != "auto":
        return recipe.training.precision
    # Older devices emulate bf16 more slowly than they compute in fp32; by default torch reports that as support.
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def engine_config(recipe: Recipe, device: torch.device, data_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe, its own settings (`recipe.deepspeed`) included.

    Raises:
        UserError: for ZeRO-0 in half precision.
    """
    config = settings(recipe, resolve_precision(recipe, device), device, data_size)
    if recipe.optimizer.name != "adamw":
        config["zero_allow_untested_optimizer"] = True  # DeepSpeed's list has its own optimisers and torch's
    return config


def build_engine(model: nn.Module, recipe: Recipe, device: torch.device, data_size: int) -> Engine:
    """A DeepSpeed engine around `model` with the recipe's optimiser over `data_size` data-parallel ranks.

    The loop sets its learning rates.

    Raises:
        UserError: if DeepSpeed refuses settings of the recipe's section `deepspeed`, or checkpoints would hold other weights
            than the model's with them.
    """
    import deepspeed

    check_version()
    check_fp16(resolve_precision(recipe, device))
    set_recompute(model, recipe.parallel)
    registry.force(recipe.training.kernels)
    choose_backward(recipe.training.attention_backward)
    config = engine_config(recipe, device, data_size)
    if isinstance(model, PretrainingModel):
        dtype = DTYPES[resolve_precision(recipe, device)]
        model.encoder.materialise(dtype, device, cut_parameters(config) or (lambda parameter: None))
    optimizer = build_optimizer(model, recipe)
    own_fields = [place for place, _ in fields_in(recipe.deepspeed or {})]
    with refusals_in_words(own_fields):
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False, mpu=deepspeed_mpu()
        )
    prepare_scaler(engine)
    prevent_stale_gradients(engine)
    optimizer_state.create_adam_state(engine)
    if isinstance(optimizer, MuonWithAdamW | StableAdamW):
        optimizer.attach(engine)
    use_exact_norms(engine)
    gate_updates(engine)
    check_all_weights(engine, own_fields)
    if data_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # DeepSpeed would copy all gradients to average them over one rank
    if isinstance(model, PretrainingModel):
        _ = model.memory  # create it now, from the initial weights of the phase
    return cast(Engine, engine)


def set_learning_rate(engine: Engine, value: float) -> None:
    """Set the learning rate of the next step in every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value * group.get("rate", 1.0)
