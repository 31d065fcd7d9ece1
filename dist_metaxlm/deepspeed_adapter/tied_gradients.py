"""The gradient of a weight that two pipeline stages hold, summed in fp32.

`PipelineEngine` (DeepSpeed 0.19.8) sums tied gradients from `grad` or `_hp_grad`; ZeRO-1 in fp16, and with offload, has them
in `grad_accum`. So they are summed here, and DeepSpeed gets an empty list.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from dist_metaxlm.deepspeed_adapter.engine_protocol import DeepSpeedParameter

_KEPT_IN = ("_hp_grad", "grad_accum", "grad")
"""Attributes in which the optimisers keep a step's gradient: bf16 ZeRO-1, ZeRO-1 with fp32 sums, all others."""


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
