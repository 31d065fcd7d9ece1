"""Bytes of a checkpoint on disk, from the recipe alone.

Three fp32 numbers are saved per parameter: the weight and Adam's two moments. Objectives add their parameters outside the
encoder, and xlco the averages and the queue that are replicated on all ranks (docs/checkpoints.md).
"""

from __future__ import annotations

from dist_metaxlm.planning.parameters import copied_parameters, count_parameters
from dist_metaxlm.recipe.schema import ModelConfig, PhaseConfig

SAVED_BYTES = 12
"""Per parameter: weight and two moments in fp32."""
_HEADER_BYTES = 6 << 10
"""Upper bound on the bytes of names, shapes and offsets of a block's tensors in the headers of the files."""


def checkpoint_bytes(model: ModelConfig, phase: PhaseConfig) -> int:
    """Bytes of the files of a checkpoint of `phase`; everything except tensors is rounded up."""
    parameters, small = count_parameters(model).total, model.vocab_size
    for objective in phase.objectives:
        parameters += objective.own_parameters(model)
        small += objective.unshared_bytes
    headers = (model.layers + 2) * _HEADER_BYTES
    return SAVED_BYTES * parameters + shared_bytes(model, phase) + small + headers


def shared_bytes(model: ModelConfig, phase: PhaseConfig) -> int:
    """Bytes that are replicated on all ranks and saved in shares: copies of the model, other fp32 numbers of objectives."""
    return sum(4 * (copied_parameters(model, objective) + objective.shared_numbers(model)) for objective in phase.objectives)
