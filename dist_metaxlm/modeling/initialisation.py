"""Initial values of parameters, each drawn by its own generator keyed by (seed, name).

Therefore a value does not depend on the order of creation, on the pipeline stage or tensor rank that holds the parameter,
or on other parameters of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

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


def initial_part(
    name: str, part: torch.Size, seed: int, std: float, shard: TensorShard = WHOLE, vocabulary: int = 0
) -> torch.Tensor:
    """Initial values of `shard`'s part, of shape `part`, of the logical parameter `name`: fp32 on CPU, in memory of its own.

    The parameter is drawn whole, then the part is taken; `vocabulary` is the number of ids without padding.
    """
    whole = initial_values(name, whole_shape(name, part, shard, vocabulary), seed, std)
    own = own_part(name, whole, shard)
    return own if own.untyped_storage().nbytes() == own.nbytes else own.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def initialise(module: nn.Module, seed: int, std: float) -> None:
    """Fill all parameters of an unsharded `module` with their initial values; their names in it are their logical names."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_part(name, parameter.shape, seed, std))


def materialise(
    module: nn.Module,
    value: Callable[[str, torch.Size], torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
    finish: Callable[[nn.Parameter], None],
) -> None:
    """Give every parameter of `module` that has only a shape its values, in `dtype` on `device`, one after another.

    `value` returns this rank's part of a parameter by its name in `module` and its shape; `finish` is called after each, so
    that it can be cut before the next one exists. The host never holds more than one in fp32.
    """
    for prefix, owner in module.named_modules():
        for key, shape in list(owner.named_parameters(recurse=False)):
            if shape.is_meta:
                values = value(f"{prefix}.{key}" if prefix else key, shape.shape)
                parameter = nn.Parameter(values.to(dtype).to(device), shape.requires_grad)
                del values
                setattr(owner, key, parameter)
                finish(parameter)
