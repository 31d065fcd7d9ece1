"""The norm of a step's gradients: exact for matrices of any size, and without a copy of them.

DeepSpeed (0.19.8) computes the norm of every gradient in one reduction. With ZeRO it uses an fp64 copy, which for a
vocabulary of 250,002 by 768 is 1.5 GB, allocated and freed in every step. Without ZeRO it sums in fp32, which on a CPU
loses 2.7 % of that matrix's norm. Here rows of 1024 elements are reduced in fp32 and combined in fp64, which is accurate
to an fp32 rounding at any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine
from dist_metaxlm.parallel.groups import groups

if TYPE_CHECKING:
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

ROW = 1024
"""Elements whose squares are added in fp32."""
PART = 2**24
"""Number of elements copied to fp32 at once, for half-precision gradients."""


def exact_norm(values: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of `values`, of any shape and floating dtype: fp64 scalar on its device."""
    norms = []
    for part in values.detach().reshape(-1).split(PART):
        dtype = torch.float64 if part.dtype == torch.float64 else torch.float32
        whole = part.numel() - part.numel() % ROW
        norms.append(torch.linalg.vector_norm(part[:whole].view(-1, ROW), dim=1, dtype=dtype))
        norms.append(torch.linalg.vector_norm(part[whole:], dtype=dtype).unsqueeze(0))
    norm: torch.Tensor = torch.linalg.vector_norm(torch.cat(norms).double())
    return norm


def use_exact_norms(engine: Engine) -> None:
    """Make `engine` clip by exact norms and report them by `get_global_grad_norm()`, at any ZeRO stage.

    Without ZeRO its updates then match ZeRO in two more ways: a parameter that no objective of the step reached has a zero
    gradient instead of none, and a step with non-finite gradients is skipped.
    """
    engine.accept_norm = lambda norm: True
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        _clip_in_each_update(engine)
    elif hasattr(engine.optimizer, "get_grads_for_norm"):
        _condense_in_bf16(engine.optimizer)
    else:
        _condense(engine.optimizer)
        if getattr(engine.optimizer, "cpu_offload", False):
            _condense_offloaded(engine.optimizer)
        elif getattr(engine.optimizer, "offload_optimizer", False):
            engine.optimizer._constant_buffered_norm2 = lambda gradient: exact_norm(gradient)
            _combine_offloaded(engine.optimizer)


def _condense(optimizer: DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3) -> None:
    """Pass exact norms to ZeRO in place of gradients."""
    of_gradients = optimizer.get_grad_norm_direct

    def of_norms(gradients: Sequence[torch.Tensor], params: Sequence[torch.Tensor], *more: object) -> torch.Tensor:
        # A one-element tensor that holds a gradient's norm has the same norm.
        norm: torch.Tensor = of_gradients([_condensed(gradient) for gradient in gradients], params, *more)
        return norm

    optimizer.get_grad_norm_direct = of_norms


def _condense_offloaded(optimizer: DeepSpeedZeroOptimizer) -> None:
    """The same for ZeRO-1 and 2 with an offloaded optimiser: each norm is computed when a gradient goes to host memory."""
    copy = optimizer.copy_grads_in_partition

    def of_gradient(param: torch.nn.Parameter) -> None:
        gradient = optimizer.get_param_gradient_attribute(param)
        _, start, _, elements = optimizer.grad_position[optimizer.get_param_id(param)]
        own = gradient.view(-1).narrow(0, start, elements)
        optimizer.norm_for_param_grads[optimizer.get_param_id(param)] = exact_norm(own)

    def of_copied(param: torch.nn.Parameter, group_idx: int | None = None) -> None:
        copy(param, group_idx)
        number = optimizer.get_param_id(param)
        if number in optimizer.norm_for_param_grads and optimizer.gradient_accumulation_dtype != optimizer.dtype:
            group, _, start, elements = optimizer.grad_position[number]
            own = optimizer.averaged_gradients[group].flat_partition.narrow(0, start, elements)
            optimizer.norm_for_param_grads[number] = exact_norm(own)

    optimizer.set_norm_for_param_grad_in_gpu = of_gradient
    optimizer.copy_grads_in_partition = of_copied
    _combine_offloaded(optimizer)


def _combine_offloaded(optimizer: DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3) -> None:
    """Combine the norms of an offloaded optimiser in the same way as on the device, so that both clip bit-identically."""
    of_norms = optimizer.get_grad_norm_direct

    def combined(params: Sequence[torch.Tensor]) -> torch.Tensor:
        norms, kept = optimizer.norm_for_param_grads, [optimizer.get_param_id(param) for param in params]
        nothing = torch.zeros((), dtype=torch.float64)
        norm: torch.Tensor = of_norms([norms.get(number, nothing) for number in kept], params).cpu()
        return norm

    optimizer.complete_grad_norm_calculation_for_cpu_offload = combined


def _condense_in_bf16(optimizer: BF16_Optimizer) -> None:
    """The same for DeepSpeed's bf16 optimiser, which ZeRO-1 and pipelines use.

    DeepSpeed's function fails if no parameter has a gradient: on a pipeline stage after the layer that an objective reads.
    """
    gradients_of_deepspeed = optimizer.get_grads_for_norm

    def of_norms(for_clipping: bool = False) -> object:
        if for_clipping:
            return gradients_of_deepspeed(for_clipping=True)
        gradients, experts = gradients_of_deepspeed()
        nothing = torch.zeros((), device=optimizer.fp32_groups_flat_partition[0].device)
        return [exact_norm(gradient) for gradient in gradients] or [nothing], experts

    optimizer.get_grads_for_norm = of_norms


def _condensed(gradient: torch.Tensor) -> torch.Tensor:
    norm = exact_norm(gradient)
    if getattr(gradient, "_zero_padding", False):  # DeepSpeed's mark of padding
        norm._zero_padding = True  # type: ignore[attr-defined]
    return norm


def _clip_in_each_update(engine: Engine) -> None:
    """Compute the norm in every update: DeepSpeed clips only with a maximum norm, but the norm is always reported."""
    update = engine.optimizer.step
    engine.clip_fp32_gradients = lambda: None

    def step(*arguments: object, **named: object) -> None:
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        engine._global_grad_norm = norm = _global_norm(parameters)
        # DeepSpeed counts skipped steps by this name.
        value = float(norm)
        engine.optimizer.overflow = not (math.isfinite(value) and engine.accept_norm(value))
        if engine.optimizer.overflow:
            engine._global_grad_norm = torch.full_like(norm, math.inf)
        else:
            _clip(parameters, norm, engine.gradient_clipping())
            update(*arguments, **named)

    engine.optimizer.step = step


def _global_norm(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm of the whole model's gradients from this pipeline stage's and tensor rank's `parameters`."""
    from deepspeed.runtime.utils import is_model_parallel_parameter

    # A pipeline's own grid would count a later stage's parameter only if tensor parallelism shards it.
    counted = [
        exact_norm(p.grad)
        for p in parameters
        if p.grad is not None and (groups().tensor_rank == 0 or is_model_parallel_parameter(p))
    ]
    zero = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    squares = torch.stack([zero, *counted]).square().sum()
    if groups().model is not None:
        dist.all_reduce(squares, group=groups().model)
    return squares.sqrt()


def _clip(parameters: Sequence[torch.Tensor], norm: torch.Tensor, largest: float) -> None:
    """Scale gradients in place if their `norm` exceeds `largest`; 0 disables clipping."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0).float()
    if largest > 0 and factor < 1:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
