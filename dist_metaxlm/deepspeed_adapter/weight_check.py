"""Checks that the fp32 weights for checkpoints match the weights that the model computes with.

Checkpoints read weights at the addresses that DeepSpeed reports (`optimizer_state.own_piece`). With a setting that changes
the memory order they would be garbage with valid digests: `round_robin_gradients` of DeepSpeed 0.19.8 reorders the flat
buffer but not the addresses. So the weights to be saved, rounded to the model's dtype, are compared with the model's own:
all of them after the engine is built, and the first elements of each at every save.
"""

from __future__ import annotations

import torch

from dist_metaxlm.deepspeed_adapter.engine_protocol import DeepSpeedParameter, Engine
from dist_metaxlm.deepspeed_adapter.optimizer_state import named_parameters, own_piece
from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.process_group import all_reduce

ELEMENTS = 1024
"""Elements of each weight that are compared at every save."""


def check_all_weights(engine: Engine, settings: list[str]) -> None:
    """Compare all weights; call it after the engine is built (collective).

    Args:
        engine: a DeepSpeed engine.
        settings: the user's fields of DeepSpeed's configuration, for the message.

    Raises:
        UserError: on all ranks, if one of them would save other weights than it computes with.
    """
    wrong = _differing(engine, None)
    if wrong is not None:
        raise UserError(
            f"with {', '.join(settings) or 'its settings'} DeepSpeed keeps the fp32 weights ({wrong}) at other "
            "addresses than it reports, and every checkpoint would hold other weights than the model's; remove these "
            "fields from the file of --deepspeed_config one by one"
        )


def check_saved_weights(engine: Engine) -> None:
    """Compare the first elements of each weight; call it before a checkpoint is written (collective).

    Raises:
        UserError: as `check_all_weights`.
    """
    wrong = _differing(engine, ELEMENTS)
    if wrong is not None:
        raise UserError(
            f"the fp32 weights ({wrong}) no longer match those that the model computes with, so this checkpoint is not "
            "written; resume from the previous one, without the fields of --deepspeed_config that were changed since"
        )


def _differing(engine: Engine, elements: int | None) -> str | None:
    """Name of the first weight that differs on this rank, `on another rank`, or None if all are equal on all ranks."""
    names, flags = [], []
    for name, param in named_parameters(engine):
        start, piece = own_piece(engine, param, None)
        used = _computed_with(param, start, piece.numel())
        piece, used = piece[:elements], used[:elements].to(piece.device)
        if piece.data_ptr() != used.data_ptr():
            names.append(name)
            flags.append(_unequal(piece.to(used.dtype), used).to(engine.device))
    wrong = torch.stack(flags) if flags else torch.zeros(1, dtype=torch.bool, device=engine.device)
    somewhere = all_reduce(wrong.any().to(torch.uint8), "max")
    if not somewhere.item():
        return None
    return names[int(wrong.to(torch.uint8).argmax())] if wrong.any() else "on another rank"


def _computed_with(param: DeepSpeedParameter, start: int, elements: int) -> torch.Tensor:
    """The model's own copy, flat, of the elements from `start` on that this rank holds."""
    if hasattr(param, "ds_id"):
        shard: torch.Tensor = param.ds_tensor.detach().view(-1)[:elements]
        return shard
    values: torch.Tensor = param.detach().reshape(-1)[start : start + elements]
    return values


def _unequal(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Whether any element differs; NaN equals NaN."""
    return ((ours != theirs) & ~(ours.isnan() & theirs.isnan())).any()
