"""Dropout whose mask is a pure function of (seed, step, objective, site, global token position, channel).

With a stateful generator, masks would differ by layout. A hash of the position gives the same mask in all layouts, and
activation recomputation needs no saved generator state. The token position is sample * L + offset, so the mask of a token
does not depend on its rank and micro-batch. Samples are numbered by objective, hence the objective's name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout, DropoutMask


@dataclass(frozen=True)
class DropoutKey:
    """Inputs of the masks of a micro-batch."""

    positions: torch.Tensor
    """[T] int64: global position of each token, sample * L + offset (`PackedBatch.token_numbers`)."""
    rate: float
    """Probability with which an element is dropped."""
    seed: int
    """Seed of the model."""
    step: int
    """Optimiser step."""
    objective: str = ""
    """Name of the objective whose sample numbers `positions` are made of."""


def counter_dropout(states: torch.Tensor, key: DropoutKey | None, site: int) -> torch.Tensor:
    """`states` [T, H] with elements dropped and the others scaled by 1 / (1 - rate); unchanged if `key` is None.

    `site` numbers the places of dropout in the model: 0 the embedding, then two per block.
    """
    mask = mask_at(key, site)
    return states if mask is None else mask.apply(states)


def mask_at(key: DropoutKey | None, site: int) -> DropoutMask | None:
    """The mask of one place in the model; None without dropout."""
    if key is None:
        return None
    return DropoutMask(key.positions, _salt(key, site, 8), key.rate)


def dropout_mask(key: DropoutKey, site: int, channels: int) -> torch.Tensor:
    """[T, channels] bool: which elements are kept."""
    mask = mask_at(key, site)
    assert mask is not None
    return mask.stays(channels)


@dataclass(frozen=True)
class AttentionDropoutKey:
    """Inputs of the masks of attention weights in a micro-batch; the rest as in `DropoutKey`."""

    token_keys: torch.Tensor
    """[2, T] int32: hashes of the global positions of all T tokens, with sequence parallelism too."""
    rate: float
    seed: int
    step: int
    objective: str = ""


def attention_mask_at(key: AttentionDropoutKey | None, block: int, first_head: int) -> AttentionDropout | None:
    """The mask of block `block` (from 0) from head `first_head` on; None without dropout."""
    if key is None:
        return None
    return AttentionDropout(key.token_keys, _salt(key, f"attention/{block}", 4), first_head, key.rate)


def _salt(key: DropoutKey | AttentionDropoutKey, site: int | str, size: int) -> int:
    """A signed word of `size` bytes for one place in the model at one step."""
    digest = hashlib.blake2b(f"{key.seed}/{key.step}/{key.objective}/{site}".encode(), digest_size=size).digest()
    return int.from_bytes(digest, "little", signed=True)
