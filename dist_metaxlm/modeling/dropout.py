"""Dropout whose mask is a pure function of (seed, step, objective, site, global token position, channel).

A generator with state gives every layout its own masks; a hash of the position gives all layouts the same one, and
activation recomputation needs no saved generator state. The token position is sample * L + offset, so a mask follows
its token to whichever rank and micro-batch takes it. Samples are numbered by objective, hence the objective's name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from dist_metaxlm.kernels.pointwise.dropout import AttentionDropout, DropoutMask


@dataclass(frozen=True)
class DropoutKey:
    """What the masks of a micro-batch depend on."""

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
    """`states` [T, H] with elements dropped and the others scaled by 1 / (1 - rate); unchanged where `key` is None.

    `site` numbers the places in the model where something is dropped: 0 the embedding, then two per block.
    """
    mask = mask_at(key, site)
    return states if mask is None else mask.apply(states)


def mask_at(key: DropoutKey | None, site: int) -> DropoutMask | None:
    """The mask of one place in the model; None where nothing is dropped."""
    if key is None:
        return None
    return DropoutMask(key.positions, _salt(key, site, 8), key.rate)


def dropout_mask(key: DropoutKey, site: int, channels: int) -> torch.Tensor:
    """[T, channels] bool: which elements stay."""
    mask = mask_at(key, site)
    assert mask is not None
    return mask.stays(channels)


@dataclass(frozen=True)
class AttentionDropoutKey:
    """What the masks of attention weights in a micro-batch depend on; the rest as in `DropoutKey`."""

    token_keys: torch.Tensor
    """[2, T] int32: hashes of the global positions of all T tokens, with sequence parallelism too."""
    rate: float
    seed: int
    step: int
    objective: str = ""


def attention_mask_at(key: AttentionDropoutKey | None, block: int, first_head: int) -> AttentionDropout | None:
    """The mask of block `block` (from 0) from head `first_head` on; None where nothing is dropped."""
    if key is None:
        return None
    return AttentionDropout(key.token_keys, _salt(key, f"attention/{block}", 4), first_head, key.rate)


def _salt(key: DropoutKey | AttentionDropoutKey, site: int | str, size: int) -> int:
    """A signed word of `size` bytes for one place in the model at one step."""
    digest = hashlib.blake2b(f"{key.seed}/{key.step}/{key.objective}/{site}".encode(), digest_size=size).digest()
    return int.from_bytes(digest, "little", signed=True)
