"""Cuts parameters over the ranks of ZeRO-3 one by one, as each gets its values.

DeepSpeed (0.19.8) cuts the model that `deepspeed.initialize` is given after it has moved all of it to every device, so each
rank needs the whole model twice, on the host and on its device. Parameters that are cut before are left as they are, as
after `deepspeed.zero.Init` around the construction of a module. Here single parameters with values of their own are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dist_metaxlm.deepspeed_adapter.mpu import deepspeed_mpu
from dist_metaxlm.parallel.groups import groups


def part_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of this rank's tensor-parallel part of a parameter; ZeRO-3 empties the parameter itself."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def cut_parameters(config: Mapping[str, Any]) -> Callable[[nn.Parameter], None] | None:
    """A function that cuts a parameter over the data-parallel ranks and keeps this rank's piece (collective).

    config: DeepSpeed's configuration of the engine to be built. None if the engine does not cut weights, or keeps copies of
    them within nodes (`zero_hpz_partition_size`), whose groups it forms itself.
    """
    zero = config.get("zero_optimization", {})
    if zero.get("stage") != 3 or zero.get("zero_hpz_partition_size", 1) > 1:
        return None
    first: list[Any] = []

    def cut(parameter: nn.Parameter) -> None:
        if first:
            first[0].convert_to_zero_parameters(param_list=[parameter])
            return
        import deepspeed

        holder, mpu = nn.Module(), deepspeed_mpu()
        holder.register_parameter("weight", parameter)
        group = groups().data if mpu else None
        deepspeed.zero.Init(holder, group, config_dict_or_path=dict(config), dtype=parameter.dtype, mpu=mpu)
        first.append(parameter)

    return cut
