"""Dropout whose mask is a pure function of (seed, step, site, global token position, channel).

A generator with state gives every layout its own masks; a hash of the position gives all layouts the same one, and
activation recomputation needs no saved generator state. The token position is sample * L + offset, so a mask follows
its token to whichever rank and micro-batch takes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

_LOW_32 = 0xFFFFFFFF
_MIX_64 = (-4658895280553007687, -7723592293110705685)  # odd factors of the splitmix64 finaliser, as signed words
_MIX_32 = (-2048144789, -1028477387)  # odd factors of the murmur3 finaliser, as signed words


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


def counter_dropout(states: torch.Tensor, key: DropoutKey | None, site: int) -> torch.Tensor:
    """`states` [T, H] with elements dropped and the others scaled by 1 / (1 - rate); unchanged where `key` is None.

    `site` numbers the places in the model where something is dropped: 0 the embedding, then two per block.
    """
    if key is None:
        return states
    return states * dropout_mask(key, site, states.shape[1]).to(states.dtype).mul_(1 / (1 - key.rate))


def dropout_mask(key: DropoutKey, site: int, channels: int) -> torch.Tensor:
    """[T, channels] bool: which elements stay."""
    salt = hashlib.blake2b(f"{key.seed}/{key.step}/{site}".encode(), digest_size=8).digest()
    rows = _mix_64(key.positions ^ int.from_bytes(salt, "little", signed=True))
    columns = _mix_64(torch.arange(channels, dtype=torch.int64, device=rows.device))
    bits = _to_int32(rows).unsqueeze(1) ^ _to_int32(columns)
    for factor, shift in zip(_MIX_32, (13, 16), strict=True):
        bits.mul_(factor)
        bits ^= (bits >> shift) & ((1 << (32 - shift)) - 1)
    return bits.bitwise_and_(0x7FFFFFFF) >= round(key.rate * 2**31)


def _mix_64(words: torch.Tensor) -> torch.Tensor:
    """Scramble int64 words one to one; integer products wrap around on every device."""
    for factor, shift in zip(_MIX_64, (27, 31), strict=True):
        words = (words ^ ((words >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return words ^ ((words >> 32) & _LOW_32)


def _to_int32(words: torch.Tensor) -> torch.Tensor:
    """The lower halves of int64 words, as signed int32."""
    low = words & _LOW_32
    return (low - ((low >> 31) << 32)).to(torch.int32)
