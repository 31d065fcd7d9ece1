"""Dropout whose mask is a pure function of (seed, step, site, global token position, channel).

A generator with state gives every layout its own masks; a hash of the position gives all layouts the same one, and
activation recomputation needs no saved generator state. The token position is sample * L + offset, so a mask follows
its token to whichever rank and micro-batch takes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from dist_metaxlm.kernels.dropout import DropoutMask


@dataclass(frozen=True)
class DropoutKey:
    """What the masks of a micro-batch depend on."""

    positions: torch.Tensor
    """[T] int64: global position of each token, sample * L + offset."""
    rate: float
    """Probability with which an element is dropped."""
    seed: int
    """Seed of the model."""
    step: int
    """Optimiser step."""


def dropout_key(samples: torch.Tensor, window: int, rate: float, seed: int, step: int) -> DropoutKey:
    """The key of a micro-batch of windows of `window` tokens with sample numbers `samples` [W]."""
    offsets = torch.arange(window, dtype=torch.int64, device=samples.device)
    return DropoutKey((samples.unsqueeze(1) * window + offsets).view(-1), rate, seed, step)


def counter_dropout(states: torch.Tensor, key: DropoutKey | None, site: int) -> torch.Tensor:
    """`states` [T, H] with elements dropped and the others scaled by 1 / (1 - rate); unchanged where `key` is None.

    `site` numbers the places in the model where something is dropped: 0 the embedding, then two per block.
    """
    mask = mask_at(key, site)
    return states if mask is None else mask.apply(states)


def mask_at(key: DropoutKey | None, site: int) -> DropoutMask | None:
    """The mask of one place in the model; None where nothing is dropped."""
    if key is None:
        return None
    salt = hashlib.blake2b(f"{key.seed}/{key.step}/{site}".encode(), digest_size=8).digest()
    return DropoutMask(key.positions, int.from_bytes(salt, "little", signed=True), key.rate)


def dropout_mask(key: DropoutKey, site: int, channels: int) -> torch.Tensor:
    """[T, channels] bool: which elements stay."""
    mask = mask_at(key, site)
    assert mask is not None
    return mask.stays(channels)
