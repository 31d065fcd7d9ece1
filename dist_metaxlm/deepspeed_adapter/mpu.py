"""The model-parallel unit that DeepSpeed queries for ranks and groups, from the groups of parallel/groups.py.

DeepSpeed uses the names of an older Megatron-LM (`get_model_parallel_*`), which megatron-core no longer has. With this
adapter ZeRO shards over the data-parallel ranks only, and the gradient norm counts a parameter that every tensor rank
holds once: only those marked `tensor_model_parallel` are counted on tensor ranks above 0. Pipelines use DeepSpeed's
own rank grid, and this adapter only for the gradient norm.
"""

from __future__ import annotations

import torch.distributed as dist

from dist_metaxlm.parallel.groups import groups


def deepspeed_mpu() -> ModelParallelUnit | None:
    """The `mpu` argument of `deepspeed.initialize`; None if all ranks are data parallel, and for a pipeline."""
    return ModelParallelUnit() if groups().tensor_size > 1 and groups().stages == 1 else None


class ModelParallelUnit:
    """Ranks, sizes and groups under the names that DeepSpeed expects."""

    def get_model_parallel_rank(self) -> int:
        """This rank among those that hold the same layers of one model."""
        return groups().tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Ranks that hold the same layers of one model."""
        return groups().tensor_size

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        """The ranks that hold one model, in all stages; None: only this rank."""
        return groups().model

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup | None:
        """The ranks that hold the same layers of one model."""
        return groups().tensor

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_pipeline_model_parallel_world_size(self) -> int:
        """Pipeline stages."""
        return groups().stages

    def get_data_parallel_rank(self) -> int:
        """This rank among those that hold the same part of the model."""
        return groups().data_rank

    def get_data_parallel_world_size(self) -> int:
        """Ranks that hold the same part of the model."""
        return groups().data_size

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        """The ranks that hold the same part of the model; ZeRO shards over them."""
        return groups().data

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their ranks in the job."""
        return list(dist.get_process_group_ranks(groups().data))
