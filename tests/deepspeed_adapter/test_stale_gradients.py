"""What is left of a step is gone before the next update; with DeepSpeed itself in tests/distributed/test_offload.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from dist_metaxlm.deepspeed_adapter.gradients import prevent_stale_gradients


class Offloaded:
    """What is read of DeepSpeed's optimiser of ZeRO-1 and 2: two parameters of 2 and 3 elements in one group."""

    cpu_offload = True
    params_in_partition = ((0, 1),)
    grad_position = {0: [0, 0, 0, 2], 1: [0, 0, 2, 3]}
    get_param_id = staticmethod(int)

    def __init__(self) -> None:
        self.single_partition_of_fp32_groups = [SimpleNamespace(grad=torch.ones(5))]
        self.norm_for_param_grads: dict[int, float] = {}
        self.averaged_gradients: dict[int, Any] = {0: "the sum of a step that overflowed"}
        self.accumulated_grads_in_cpu = {0: torch.ones(2), 1: torch.ones(3)}
        self._offload_accumulated_param_ids: set[int] = set()
        self.updates: list[list[float]] = []

    def step(self) -> None:
        self.updates.append(self.single_partition_of_fp32_groups[0].grad.tolist())

    def async_accumulate_grad_in_cpu_via_gpu(self, param: int) -> None:
        self.accumulated_grads_in_cpu[param] += 1
        self._offload_accumulated_param_ids.add(param)


def test_an_update_has_no_gradient_of_what_its_step_did_not_reach() -> None:
    optimizer = Offloaded()
    prevent_stale_gradients(SimpleNamespace(optimizer=optimizer))
    optimizer.norm_for_param_grads[1] = 1.0
    optimizer.step()
    assert optimizer.updates == [[0.0, 0.0, 1.0, 1.0, 1.0]]
    assert optimizer.averaged_gradients == {0: None}


def test_sums_of_micro_steps_begin_at_zero_in_each_step() -> None:
    optimizer = Offloaded()
    prevent_stale_gradients(SimpleNamespace(optimizer=optimizer))
    for param in (0, 1, 0):
        optimizer.async_accumulate_grad_in_cpu_via_gpu(param)
    assert optimizer.accumulated_grads_in_cpu[0].tolist() == [2.0, 2.0]
    assert optimizer.accumulated_grads_in_cpu[1].tolist() == [1.0, 1.0, 1.0]


def test_zero_3_begins_at_zero_too_on_the_device_and_off_it() -> None:
    for offload in (False, True):
        masters = [SimpleNamespace(grad=torch.ones(2)), SimpleNamespace(grad=None)]
        optimizer: Any = SimpleNamespace(
            grad_partitions_flat_buffer=torch.ones(3),
            fp32_partitioned_groups_flat=masters,
            offload_optimizer=offload,
            step=lambda: None,
        )
        prevent_stale_gradients(SimpleNamespace(optimizer=optimizer))
        optimizer.step()
        assert optimizer.grad_partitions_flat_buffer.tolist() == [0.0] * 3
        assert masters[0].grad.tolist() == [0.0 if offload else 1.0] * 2


def test_an_optimiser_that_frees_its_gradients_is_left_alone() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    prevent_stale_gradients(SimpleNamespace(optimizer=optimizer))
    assert "step" not in vars(optimizer)
