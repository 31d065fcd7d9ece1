"""Process groups of model and data parallelism, in megatron-core and in DeepSpeed.

rank = (stage * data size + data rank) * tensor size + tensor rank: tensor ranks are neighbours, so they share a node
if it holds a whole group, and pipeline stages are farthest apart. megatron-core's `tp-cp-ep-dp-pp` order and DeepSpeed's
`pipe, data, model` axes agree on this.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from dist_metaxlm.parallel.current_device import patch_current_device
from dist_metaxlm.parallel.deepspeed_import import without_compiling


@dataclass(frozen=True)
class Groups:
    """This rank's place in the grid of ranks. A group is None if it is all ranks (or only this one)."""

    tensor_rank: int
    tensor_size: int
    """Ranks that together hold one copy of the model and process the same batch."""
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
    """The ranks of all stages that together hold one copy of the model."""
    batches: dist.ProcessGroup | None = None
    """The tensor ranks in a separate gloo group, so that a thread can send batches over it."""

    @property
    def stage_ranks(self) -> range:
        """The ranks that hold this rank's layers, in all copies and tensor parts."""
        size = self.data_size * self.tensor_size
        return range(self.stage * size, (self.stage + 1) * size)


_formed: Groups | None = None


def groups() -> Groups:
    """The groups formed by `form_groups`; before that, all ranks are data parallel."""
    if _formed is not None:
        return _formed
    if dist.is_initialized():
        return Groups(0, 1, dist.get_rank(), dist.get_world_size())
    return Groups(0, 1, 0, 1)


def form_groups(tensor: int, pipeline: int, device: torch.device) -> None:
    """Divide the ranks into `pipeline` stages of tensor groups of `tensor` ranks (collective).

    With one of each, no group is formed and megatron-core is not imported.
    """
    global _formed
    if tensor == 1 and pipeline == 1:
        return
    patch_current_device(device)
    with without_compiling():  # megatron-core's fused functions, which no layer here calls
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
    """This rank's tensor group in gloo: batches in host memory cannot be sent over NCCL."""
    if tensor == 1:
        return None
    starts = range(0, dist.get_world_size(), tensor)
    own: dist.ProcessGroup | None
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
