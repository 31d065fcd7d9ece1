"""Bytes of a checkpoint on the disk, from the recipe alone.

Of every parameter three fp32 numbers are saved: the weight and Adam's two moments. Objectives add what they have beside the
encoder, and xlco the averages and the queue that all ranks hold alike (docs/checkpoints.md).
"""

from __future__ import annotations

from dist_metaxlm.planning.parameters import count_parameters, momentum_parameters, objective_parameters
from dist_metaxlm.recipe.schema import CrossLingualContrast, ModelConfig, PhaseConfig

SAVED_BYTES = 12
"""Of a parameter: its weight and two moments in fp32."""
_HEADER_BYTES = 6 << 10
"""More than the names, shapes and places of a block's tensors take in the headers of the files."""


def checkpoint_bytes(model: ModelConfig, phase: PhaseConfig) -> int:
    """Bytes of the files of a checkpoint of `phase`; what is not tensors is rounded up."""
    parameters, small = count_parameters(model).total, model.vocab_size
    for objective in phase.objectives:
        parameters += objective_parameters(model, objective)
        small += 16 * objective.queue if isinstance(objective, CrossLingualContrast) else 0
    headers = (model.layers + 2) * _HEADER_BYTES
    return SAVED_BYTES * parameters + shared_bytes(model, phase) + small + headers


def shared_bytes(model: ModelConfig, phase: PhaseConfig) -> int:
    """Bytes of what all ranks hold alike and save in shares: xlco's averages and queue."""
    return sum(
        4 * (momentum_parameters(model, objective) + objective.queue * model.hidden)
        for objective in phase.objectives
        if isinstance(objective, CrossLingualContrast)
    )
