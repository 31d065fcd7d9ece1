"""Gradients that DeepSpeed keeps from step to step, or sums over pipeline stages from another place than it keeps them.

Gradients of an earlier step must not enter an update, whatever parameters the step's objectives reach.

Gradients that DeepSpeed (0.19.8) keeps between steps, and the workarounds:

* ZeRO-1 and 2 with an offloaded optimiser keep the step's gradients in one buffer in host memory and overwrite only those of
  the parameters that the step reaches; AdamW reads all of them. The others are set to zero before the update.
* The same in fp32 add up micro-steps in a buffer for each parameter, which is read in every micro-step but the first. If
  the first does not reach the parameter, the buffer still holds the previous step. It is set to zero when the step first
  reaches the parameter.
* ZeRO-3 overwrites a parameter's shard in the first micro-step and adds in the others, and keeps its fp32 copy in host
  memory if the optimiser is offloaded. Both are set to zero after the update.
* ZeRO-1 and 2 with an offloaded optimiser and half precision do not free the fp32 sum of a step whose gradients overflow and
  add the next step to it, so every later step overflows too. It is freed.

ZeRO-0, and ZeRO-1 and 2 on the device, free their gradients after each step.

The gradient of a weight that two pipeline stages hold is summed here in fp32: `PipelineEngine` sums tied gradients from
`grad` or `_hp_grad`; ZeRO-1 in fp16, and with offload, has them in `grad_accum`. DeepSpeed gets an empty list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from dist_metaxlm.deepspeed_adapter.engine_protocol import DeepSpeedParameter, Engine

if TYPE_CHECKING:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

_KEPT_IN = ("_hp_grad", "grad_accum", "grad")
"""Attributes in which the optimisers keep a step's gradient: bf16 ZeRO-1, ZeRO-1 with fp32 sums, all others."""


def prevent_stale_gradients(engine: Engine) -> None:
    """Make every step of `engine`, a pipeline too, begin with zero gradients. Call it once, after the engine is built."""
    optimizer = engine.optimizer
    if getattr(optimizer, "grad_partitions_flat_buffer", None) is not None:
        _clear_zero3_after_each_step(optimizer)
    elif getattr(optimizer, "cpu_offload", False):
        _clear_unreached_before_each_step(optimizer)
        _clear_at_first_micro_step(optimizer)


def _clear_zero3_after_each_step(optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
    update = optimizer.step

    def step(*arguments: object, **named: object) -> None:
        update(*arguments, **named)
        optimizer.grad_partitions_flat_buffer.zero_()
        for master in optimizer.fp32_partitioned_groups_flat if optimizer.offload_optimizer else ():
            if master.grad is not None:
                master.grad.zero_()

    optimizer.step = step


def _clear_unreached_before_each_step(optimizer: DeepSpeedZeroOptimizer) -> None:
    """Reached parameters are those with a norm, which DeepSpeed clears after each step."""
    update = optimizer.step

    def step(*arguments: object, **named: object) -> None:
        for params in optimizer.params_in_partition:
            for number in map(optimizer.get_param_id, params):
                if number not in optimizer.norm_for_param_grads:
                    group, _, start, elements = optimizer.grad_position[number]
                    optimizer.single_partition_of_fp32_groups[group].grad.view(-1).narrow(0, start, elements).zero_()
        update(*arguments, **named)
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None  # left by a step that was skipped

    optimizer.step = step


def _clear_at_first_micro_step(optimizer: DeepSpeedZeroOptimizer) -> None:
    accumulate = optimizer.async_accumulate_grad_in_cpu_via_gpu

    def from_zero(param: torch.nn.Parameter) -> None:
        number = optimizer.get_param_id(param)
        buffer = optimizer.accumulated_grads_in_cpu.get(number)
        if buffer is not None and number not in optimizer._offload_accumulated_param_ids:
            buffer.zero_()
        accumulate(param)

    optimizer.async_accumulate_grad_in_cpu_via_gpu = from_zero


@torch.no_grad()
def sum_tied_gradient(weight: DeepSpeedParameter, group: dist.ProcessGroup) -> None:
    """Sum a step's gradient of `weight` over its holders in `group`, in place (collective); all of them are fp32.

    The untrained copy (`ds_pipe_replicated`) begins its next step at zero.
    """
    kept = (getattr(weight, name, None) for name in _KEPT_IN)
    gradient = next((value for value in kept if value is not None), None)
    if gradient is None:  # a step without a masked-LM objective gives the head none; its peer waits for it
        gradient = torch.zeros_like(weight, dtype=torch.float32)
    dist.all_reduce(gradient, group=group)
    if weight.ds_pipe_replicated:
        weight.grad_accum = None


def add_in_fp32(weight: DeepSpeedParameter) -> None:
    """Hook of an untrained copy: add a micro-batch's gradient to the step's, as ZeRO-1 does for trained ones."""
    assert weight.grad is not None
    gradient, before = weight.grad.float(), getattr(weight, "grad_accum", None)
    weight.grad, weight.grad_accum = None, gradient if before is None else before.add_(gradient)
