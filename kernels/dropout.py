"""Counter-based dropout: a mask that is a hash of (salt, row position, channel), in PyTorch and bit for bit in Triton.

Nothing is stored for the backward: whoever needs the mask again computes it again. The hash is splitmix64's finaliser
over the salted position and over the channel, their lower halves combined by xor and finished as in murmur3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

_LOW_32 = 0xFFFFFFFF
_MIX_64 = (-4658895280553007687, -7723592293110705685)  # odd factors of the splitmix64 finaliser, as signed words
_MIX_32 = (-2048144789, -1028477387)  # odd factors of the murmur3 finaliser, as signed words


@dataclass(frozen=True)
class DropoutMask:
    """One mask over [T, H]."""

    positions: torch.Tensor
    """[T] int64: what the row of the mask depends on."""
    salt: int
    """Signed 64-bit word: what the whole mask depends on."""
    rate: float
    """Probability with which an element is dropped."""

    @property
    def threshold(self) -> int:
        """An element stays where the lower 31 bits of its hash are not below this."""
        return round(self.rate * 2**31)

    @property
    def scale(self) -> float:
        """What the elements that stay are multiplied by."""
        return 1 / (1 - self.rate)

    def stays(self, channels: int) -> torch.Tensor:
        """[T, channels] bool."""
        rows = _mix_64(self.positions ^ self.salt)
        bits = _to_int32(rows).unsqueeze(1) ^ column_keys(channels, rows.device)
        for factor, shift in zip(_MIX_32, (13, 16), strict=True):
            bits.mul_(factor)
            bits ^= (bits >> shift) & ((1 << (32 - shift)) - 1)
        return bits.bitwise_and_(0x7FFFFFFF) >= self.threshold

    def apply(self, states: torch.Tensor) -> torch.Tensor:
        """`states` [T, H] with elements dropped and the others scaled."""
        return states * self.stays(states.shape[1]).to(states.dtype).mul_(self.scale)


@lru_cache(maxsize=16)
def column_keys(channels: int, device: torch.device) -> torch.Tensor:
    """[channels] int32: hashes of the channel numbers, the same in every mask."""
    return _to_int32(_mix_64(torch.arange(channels, dtype=torch.int64, device=device)))


def _mix_64(words: torch.Tensor) -> torch.Tensor:
    """Scramble int64 words one to one; integer products wrap around on every device."""
    for factor, shift in zip(_MIX_64, (27, 31), strict=True):
        words = (words ^ ((words >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return words ^ ((words >> 32) & _LOW_32)


def _to_int32(words: torch.Tensor) -> torch.Tensor:
    """The lower halves of int64 words, as signed int32."""
    low = words & _LOW_32
    return (low - ((low >> 31) << 32)).to(torch.int32)
