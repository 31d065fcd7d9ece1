"""The flat tensors that DeepSpeed's optimisers pass to torch's, and the parameters that they hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dist_metaxlm.deepspeed_adapter.engine_protocol import DeepSpeedParameter, Engine

_NAMES = (
    ("fp32_partitioned_groups_flat", "fp16_groups"),
    ("single_partition_of_fp32_groups", "bit16_groups"),
    ("fp32_groups_flat_partition", "bf16_groups"),
)
"""DeepSpeed 0.19.8: ZeRO-3, ZeRO-1 and 2, and its bf16 optimiser name them differently."""


def optimizer_shards(engine: Engine) -> Iterator[tuple[torch.Tensor, list[DeepSpeedParameter]]]:
    """(tensor that the optimiser updates, parameters that it is a shard of), in the same order on all ranks.

    Without ZeRO a parameter is updated by itself.
    """
    zero = engine.optimizer
    for flat, members in _NAMES:
        if hasattr(zero, flat):
            yield from zip(getattr(zero, flat), getattr(zero, members), strict=True)
            return
    for group in zero.param_groups:
        for param in group["params"]:
            yield param, [param]
