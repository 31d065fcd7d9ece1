"""The model-parallel unit that DeepSpeed asks about its ranks, answered by the groups that were formed.

DeepSpeed speaks the names of an older Megatron-LM (`get_model_parallel_*`), which megatron-core no longer has. With this
adapter ZeRO shards over the data-parallel ranks alone, and the gradient norm counts a parameter that every tensor rank
holds once: only those marked `tensor_model_parallel` are counted on tensor ranks above 0. A pipeline brings DeepSpeed's
own grid of ranks; there this one serves for the gradient norm alone.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from dist_metaxlm.parallel.groups import groups


def deepspeed_mpu() -> ModelParallelUnit | None:
    """What `deepspeed.initialize` takes as `mpu`; None where all ranks are data parallel, and for a pipeline."""
    return ModelParallelUnit() if groups().tensor_size > 1 and groups().stages == 1 else None


class ModelParallelUnit:
    """Ranks, sizes and groups under the names that DeepSpeed calls."""

    def get_model_parallel_rank(self) -> int:
        """This rank among those that hold the same layers of one model."""
        return groups().tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Ranks that hold the same layers of one model."""
        return groups().tensor_size

    def get_model_parallel_group(self) -> Any:
        """The ranks that hold one model, those of all its stages; None: this rank alone does."""
        return groups().model

    def get_tensor_model_parallel_group(self) -> Any:
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

    def get_data_parallel_group(self) -> Any:
        """The ranks that hold the same part of the model; ZeRO shards over them."""
        return groups().data

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their ranks in the job."""
        return list(dist.get_process_group_ranks(groups().data))
