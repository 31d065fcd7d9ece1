"""Prevents gradients of an earlier step from entering an update, whatever parameters the step's objectives reach.

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
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dist_metaxlm.deepspeed_adapter.engine_protocol import Engine

if TYPE_CHECKING:
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


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
