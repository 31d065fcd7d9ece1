"""Which ranks share a model and which share the data: megatron-core's process groups beside DeepSpeed's.

rank = (stage * data size + data rank) * tensor size + tensor rank: tensor ranks are neighbours, so they lie on one node
where it holds a whole group, and pipeline stages are farthest apart. megatron-core's `tp-cp-ep-dp-pp` order and DeepSpeed's
`pipe, data, model` axes agree on this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from dist_metaxlm.parallel.current_device import patch_current_device


@dataclass(frozen=True)
class Groups:
    """This rank's place in the grid of ranks. A group is None where it is all ranks (or there is only this one)."""

    tensor_rank: int
    tensor_size: int
    """Ranks that hold one copy of the model together, and see the same batch."""
    data_rank: int
    data_size: int
    """Copies of the model, each with its own share of the batch."""
    stage: int = 0
    """This rank's pipeline stage."""
    stages: int = 1
    """Pipeline stages, each with its own layers of the model."""
    tensor: dist.ProcessGroup | None = None
    data: dist.ProcessGroup | None = None
    model: dist.ProcessGroup | None = None
    """The ranks of all stages that hold one copy of the model together."""
    batches: dist.ProcessGroup | None = None
    """The tensor ranks again, in a gloo group of its own, so that a thread may send batches over it."""

    @property
    def stage_ranks(self) -> range:
        """The ranks of the job that hold this rank's layers, all copies and all tensor parts of them."""
        size = self.data_size * self.tensor_size
        return range(self.stage * size, (self.stage + 1) * size)


_formed: Groups | None = None


def groups() -> Groups:
    """The groups that were formed; without any, all ranks are data parallel."""
    if _formed is not None:
        return _formed
    if dist.is_initialized():
        return Groups(0, 1, dist.get_rank(), dist.get_world_size())
    return Groups(0, 1, 0, 1)


def form_groups(tensor: int, pipeline: int, device: torch.device) -> None:
    """Cut the ranks into `pipeline` stages of groups of `tensor` (collective).

    With one of each there is nothing to form, nor megatron-core to import.
    """
    global _formed
    if tensor == 1 and pipeline == 1:
        return
    patch_current_device(device)
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, create_gloo_process_groups=False
    )
    _formed = Groups(
        parallel_state.get_tensor_model_parallel_rank(),
        tensor,
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_rank(),
        pipeline,
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_data_parallel_group(),
        parallel_state.get_model_parallel_group(),
        _batch_group(tensor),
    )


def _batch_group(tensor: int) -> dist.ProcessGroup | None:
    """This rank's tensor group in gloo: NCCL has no use for batches that still lie in host memory."""
    if tensor == 1:
        return None
    starts = range(0, dist.get_world_size(), tensor)
    own, _ = dist.new_subgroups_by_enumeration([list(range(start, start + tensor)) for start in starts], backend="gloo")
    return own


def forget_groups() -> None:
    """Undo `form_groups`, in megatron-core and in DeepSpeed, which keeps the mpu of its last engine."""
    global _formed
    if _formed is None:
        return
    _formed = None
    from deepspeed.utils import groups as of_deepspeed
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    of_deepspeed.mpu = None
