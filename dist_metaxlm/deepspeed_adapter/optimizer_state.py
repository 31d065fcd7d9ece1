"""fp32 weights and Adam moments by logical parameter name, whatever ZeRO stage and tensor ranks hold them.

DeepSpeed shards and flattens AdamW's state, and tensor ranks have parts of a logical parameter. These functions read and
write whole tensors by the model's parameter names, so checkpoints are independent of the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.utils.hooks import RemovableHandle

from dist_metaxlm.deepspeed_adapter.engine_protocol import DeepSpeedParameter, Engine
from dist_metaxlm.modeling.sharding import own_part

MOMENTS = ("exp_avg", "exp_avg_sq")
_SHARD_NAMES = (
    ("fp32_partitioned_groups_flat", "fp16_groups"),
    ("single_partition_of_fp32_groups", "bit16_groups"),
    ("fp32_groups_flat_partition", "bf16_groups"),
)
"""DeepSpeed 0.19.8: ZeRO-3, ZeRO-1 and 2, and its bf16 optimiser name them differently."""


def _inner(engine: Engine) -> torch.optim.Optimizer:
    """The torch optimiser inside DeepSpeed's wrapper (with ZeRO-0 in fp32 there is no wrapper)."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def optimizer_name(engine: Engine) -> str:
    """Name of the optimiser as recipes have it (`optimizer.name`)."""
    return getattr(_inner(engine), "recipe_name", "adamw")


def before_each_update(engine: Engine, action: Callable[[], None]) -> RemovableHandle:
    """Call `action` before AdamW changes anything; `remove()` of the returned handle ends that.

    ZeRO divides an update into several AdamW steps (groups, shards): `action` is called before each of them.
    """

    def hook(*_: object) -> None:
        action()

    return _inner(engine).register_step_pre_hook(hook)


def optimizer_shards(engine: Engine) -> Iterator[tuple[torch.Tensor, list[DeepSpeedParameter]]]:
    """(tensor that the optimiser updates, parameters that it is a shard of), in the same order on all ranks.

    Without ZeRO a parameter is updated by itself.
    """
    zero = engine.optimizer
    for flat, members in _SHARD_NAMES:
        if hasattr(zero, flat):
            yield from zip(getattr(zero, flat), getattr(zero, members), strict=True)
            return
    for group in zero.param_groups:
        for param in group["params"]:
            yield param, [param]


def own_piece(engine: Engine, param: DeepSpeedParameter, moment: str | None) -> tuple[int, torch.Tensor]:
    """This rank's piece of an fp32 weight (`moment` None) or of one of its Adam moments; not collective.

    Returns:
        Number of the first element in the flattened parameter (in this rank's part of it, under tensor parallelism), and
        the elements from there on, as a flat view.
    """
    if hasattr(param, "ds_id"):
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        piece = safe_get_local_fp32_param(param) if moment is None else safe_get_local_optimizer_state(param, moment)
        start = piece.numel() * torch.distributed.get_rank(param.ds_process_group)
        return start, piece.narrow(0, 0, max(0, min(piece.numel(), param.ds_numel - start))).detach()  # without padding
    if hasattr(param, "_hp_mapping"):
        mapping = param._hp_mapping
        if mapping is None:
            return 0, torch.empty(0)
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment).detach().view(-1)
    value = param if moment is None else _inner(engine).state[param][moment]
    return 0, value.detach().view(-1)


@contextmanager
def whole_weight(param: torch.nn.Parameter) -> Iterator[None]:
    """The weight is whole on every rank inside: ZeRO-3 gathers it only in the forward pass of its own layer (collective)."""
    if not hasattr(param, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([param]):
        yield


def set_full_weight(engine: Engine, name: str, param: DeepSpeedParameter, value: torch.Tensor) -> None:
    """Write this rank's part of a whole fp32 weight into its master copy, and into the model's own copy."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    value = own_part(name, value, engine.module.encoder.shard).to(param.device)
    if hasattr(param, "ds_id"):
        piece = _zero3_piece(param, value)
        safe_set_local_fp32_param(param, piece)
        param.ds_tensor.data.copy_(piece)
        if param.numel() == value.numel():  # a small parameter that ZeRO-3 keeps whole on every rank
            param.data.copy_(value)
        return
    safe_set_full_fp32_param(param, value)
    param.data.copy_(value)


def set_exact_weights(engine: Engine, weights: Mapping[str, torch.Tensor]) -> None:
    """Set the fp32 master copies to the whole tensors in `weights`, by logical name; others are unchanged.

    DeepSpeed creates the masters of a half-precision engine after rounding the module to 16 bits. The model's own copies are
    already these values, rounded, and stay unchanged. In fp32 nothing needs correction.
    """
    for name, param in named_parameters(engine):
        if param.dtype != torch.float32 and name in weights:
            set_full_weight(engine, name, param, weights[name].float())


def set_full_moment(engine: Engine, name: str, param: DeepSpeedParameter, moment: str, value: torch.Tensor) -> None:
    """Write this rank's part of a whole Adam moment into its shard."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    value = own_part(name, value, engine.module.encoder.shard).to(param.device)
    if hasattr(param, "ds_id"):
        safe_set_local_optimizer_state(param, _zero3_piece(param, value), moment)
    elif hasattr(param, "_hp_mapping"):
        safe_set_full_optimizer_state(param, value, moment)
    else:
        _inner(engine).state[param][moment].copy_(value)


def _zero3_piece(param: DeepSpeedParameter, value: torch.Tensor) -> torch.Tensor:
    """This rank's piece of `value`, which ZeRO-3 flattens and splits into equal pieces, zero-padded.

    DeepSpeed's own setters of full values (0.19.8) fail if the ranks do not divide the number of elements.
    """
    pieces = torch.distributed.get_world_size(param.ds_process_group)
    flat = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % pieces))
    return flat.chunk(pieces)[torch.distributed.get_rank(param.ds_process_group)]


def adam_step(engine: Engine) -> int:
    """Updates that Adam has made; 0 before the first."""
    for state in _inner(engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def create_adam_state(engine: Engine) -> None:
    """Create AdamW's state before its first update, so that saved moments can be written into it.

    A fresh run needs it too: DeepSpeed (0.19.8) updates parameter groups one by one and links the shards of all groups
    to parameter names after the first group's update, when the second group has no state yet.
    """
    optimizer = _inner(engine)
    # ZeRO-3 passes its flat shards to AdamW one at a time in each update, and leaves the groups empty in between.
    shards = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    for param in shards or [param for group in optimizer.param_groups for param in group["params"]]:
        # Fused AdamW keeps the step count as an fp32 tensor on the parameter's device.
        optimizer.state[param] = {
            "step": torch.zeros((), dtype=torch.float32, device=param.device),
            **{moment: torch.zeros_like(param.data) for moment in MOMENTS},
        }
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def set_adam_step(engine: Engine, step: int) -> None:
    """Set AdamW's update count to `step` (its bias correction depends on it)."""
    for state in _inner(engine).state.values():
        if "step" in state:
            state["step"].fill_(float(step))


def named_parameters(engine: Engine) -> Iterator[tuple[str, DeepSpeedParameter]]:
    """(logical name, parameter) of this rank's stage of the encoder, in a fixed order; each name on one stage only."""
    for name, param in engine.module.named_parameters():
        if not getattr(param, "ds_pipe_replicated", False):
            yield name.removeprefix("encoder."), param
