"""Initial values of parameters, each drawn by its own generator keyed by (seed, name).

Therefore a value does not depend on the order of creation, on the pipeline stage or tensor rank that holds the parameter,
or on other parameters of the model.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from dist_metaxlm.modeling.sharding import WHOLE, TensorShard, own_part, whole_shape


def initial_values(name: str, shape: torch.Size | tuple[int, ...], seed: int, std: float) -> torch.Tensor:
    """Initial values of the whole logical parameter `name`, fp32 on CPU.

    Matrices and embeddings are normal with standard deviation `std`, biases zero, norm weights one.
    """
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)


@torch.no_grad()
def initialise(module: nn.Module, seed: int, std: float, shard: TensorShard = WHOLE, vocabulary: int = 0) -> None:
    """Fill all parameters of `module` with their initial values; their names in `module` are their logical names.

    Each is drawn whole, then `shard`'s part is taken; `vocabulary` is the number of ids without padding.
    """
    for name, parameter in module.named_parameters():
        shape = whole_shape(name, parameter.shape, shard, vocabulary)
        parameter.copy_(own_part(name, initial_values(name, shape, seed, std), shard))
