"""Counter-based dropout: the mask is a hash of (salt, row position, channel), in PyTorch and bit for bit in Triton.

Nothing is stored for the backward: the mask is computed again. The hash is splitmix64's finaliser
over the salted position and over the channel, their lower halves combined by xor and finished as in murmur3. The hash
of an attention weight is over (head, query token, key token) in the same way, in 32 bits, once per weight and pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

PART_WORDS = 2**16
"""Words that a CPU hashes at a time: they and as many results fit its second-level cache."""
_LOW_32, _LOW_31 = 0xFFFFFFFF, 0x7FFFFFFF
_MIX_64 = (-4658895280553007687, -7723592293110705685)  # odd factors of the splitmix64 finaliser, as signed words
_MIX_32 = (-2048144789, -1028477387)  # odd factors of the murmur3 finaliser, as signed words


def threshold(rate: float) -> int:
    """An element is kept if the lower 31 bits of its hash are not below this."""
    return round(rate * 2**31)


def keep_factor(rate: float) -> float:
    """Factor of the kept elements."""
    return 1 / (1 - rate)


@dataclass(frozen=True)
class DropoutMask:
    """One mask over [T, H]."""

    positions: torch.Tensor
    """[T] int64: hash input of each row of the mask."""
    salt: int
    """Signed 64-bit word: hash input of the whole mask."""
    rate: float
    """Probability with which an element is dropped."""

    def stays(self, channels: int) -> torch.Tensor:
        """[T, channels] bool."""
        return self._drawn(channels, torch.bool)

    def apply(self, states: torch.Tensor) -> torch.Tensor:
        """`states` [T, H] with elements dropped and the others scaled."""
        return states * self._drawn(states.shape[1], states.dtype)

    def _drawn(self, channels: int, dtype: torch.dtype) -> torch.Tensor:
        rows = _to_int32(_mix_64(self.positions ^ self.salt))
        return _drawn(rows.unsqueeze(1), column_keys(channels, rows.device), self.rate, dtype)


@dataclass(frozen=True)
class AttentionDropout:
    """Dropout of the attention weights of one layer, among T tokens."""

    token_keys: torch.Tensor
    """[2, T] int32: `token_keys`, the same for all layers."""
    salt: int
    """Signed 32-bit word: hash input of the layer's masks."""
    first_head: int
    """Number of this rank's first head in the whole layer."""
    rate: float
    """Probability with which a weight is dropped."""

    def query_words(self, heads: int) -> torch.Tensor:
        """[heads, T] int32: contribution of a query to the hash of its weights."""
        numbers = torch.arange(self.first_head, self.first_head + heads, dtype=torch.int32, device=self.token_keys.device)
        return _mix_32_(_mix_32_(numbers ^ self.salt).unsqueeze(1) ^ self.token_keys[0])

    def stays(self, query_words: torch.Tensor, key_words: torch.Tensor) -> torch.Tensor:
        """[..., Q, K] bool, from `query_words` [..., Q] and `key_words` [..., K], those of `token_keys[1]`."""
        return _drawn(query_words.unsqueeze(-1), key_words.unsqueeze(-2), self.rate, torch.bool)

    def apply(self, weights: torch.Tensor, query_words: torch.Tensor, key_words: torch.Tensor) -> torch.Tensor:
        """`weights` [..., Q, K] with elements dropped and the others scaled; words as in `stays`."""
        return weights * _drawn(query_words.unsqueeze(-1), key_words.unsqueeze(-2), self.rate, weights.dtype)


def token_keys(positions: torch.Tensor) -> torch.Tensor:
    """[2, T] int32: hashes of tokens as queries and as keys, from `positions` [T] int64, which must be non-negative."""
    return _to_int32(_mix_64(torch.stack((positions, ~positions))))


@lru_cache(maxsize=16)
def column_keys(channels: int, device: torch.device) -> torch.Tensor:
    """[channels] int32: hashes of the channel numbers, the same in every mask."""
    return _to_int32(_mix_64(torch.arange(channels, dtype=torch.int64, device=device)))


def _drawn(left: torch.Tensor, right: torch.Tensor, rate: float, dtype: torch.dtype) -> torch.Tensor:
    """In the shape of `left ^ right`, int32 words: which elements are kept (bool), or their factors (floating).

    A dozen passes: on a CPU part by part, so that the words stay in the core's cache.
    """
    if left.device.type != "cpu" or torch.compiler.is_compiling():
        stays = _mix_32_(left ^ right).bitwise_and_(_LOW_31) >= threshold(rate)
        return stays if dtype == torch.bool else stays.to(dtype).mul_(keep_factor(rate))
    shape = torch.broadcast_shapes(left.shape, right.shape)
    drawn = torch.empty(shape, dtype=dtype)
    if drawn.numel():
        _draw(drawn, left.expand(shape), right.expand(shape), rate)
    return drawn


def _draw(drawn: torch.Tensor, left: torch.Tensor, right: torch.Tensor, rate: float) -> None:
    """`_drawn` of equal shapes, written into `drawn`."""
    size = drawn[0].numel()
    if size > PART_WORDS and drawn.dim() > 1:
        for index in range(len(drawn)):
            _draw(drawn[index], left[index], right[index], rate)
        return
    step = max(1, PART_WORDS // size)
    for first in range(0, len(drawn), step):
        part = slice(first, first + step)
        words = _mix_32_(left[part] ^ right[part]).bitwise_and_(_LOW_31)
        # torch vectorises neither comparisons to bool nor conversions from bool to floats.
        if drawn.dtype == torch.bool:
            drawn[part] = words.ge_(threshold(rate))
        else:
            torch.ge(words, threshold(rate), out=drawn[part]).mul_(keep_factor(rate))


def _mix_64(words: torch.Tensor) -> torch.Tensor:
    """Scramble int64 words one to one; integer products wrap around on every device."""
    for factor, shift in zip(_MIX_64, (27, 31), strict=True):
        words = (words ^ ((words >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return words ^ ((words >> 32) & _LOW_32)


def _mix_32_(words: torch.Tensor) -> torch.Tensor:
    """Scramble int32 words one to one, in place."""
    for factor, shift in zip(_MIX_32, (13, 16), strict=True):
        words.mul_(factor)
        words ^= (words >> shift).bitwise_and_((1 << (32 - shift)) - 1)
    return words


def _to_int32(words: torch.Tensor) -> torch.Tensor:
    """The lower halves of int64 words, as signed int32."""
    low = words & _LOW_32
    return (low - ((low >> 31) << 32)).to(torch.int32)
