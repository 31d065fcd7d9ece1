"""Bytes of a checkpoint on the disk, from the recipe alone.

Of every parameter three fp32 numbers are saved: the weight and Adam's two moments. Objectives add what they have beside the
encoder, and xlco the averages and the queue that all ranks hold alike (docs/checkpoints.md).
"""

from __future__ import annotations

from dist_metaxlm.planning.parameters import copied_parameters, count_parameters
from dist_metaxlm.recipe.schema import ModelConfig, PhaseConfig

SAVED_BYTES = 12
"""Of a parameter: its weight and two moments in fp32."""
_HEADER_BYTES = 6 << 10
"""More than the names, shapes and places of a block's tensors take in the headers of the files."""


def checkpoint_bytes(model: ModelConfig, phase: PhaseConfig) -> int:
    """Bytes of the files of a checkpoint of `phase`; what is not tensors is rounded up."""
    parameters, small = count_parameters(model).total, model.vocab_size
    for objective in phase.objectives:
        parameters += objective.own_parameters(model)
        small += objective.unshared_bytes
    headers = (model.layers + 2) * _HEADER_BYTES
    return SAVED_BYTES * parameters + shared_bytes(model, phase) + small + headers


def shared_bytes(model: ModelConfig, phase: PhaseConfig) -> int:
    """Bytes of what all ranks hold alike and save in shares: copies of the model, and other fp32 numbers of objectives."""
    return sum(4 * (copied_parameters(model, objective) + objective.shared_numbers(model)) for objective in phase.objectives)
