"""The masks of kernels/pointwise/dropout.py in Triton, bit for bit: functions that kernels call."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix_32(word):
    """uint32 words scrambled one to one: the finaliser of murmur3, as in kernels/pointwise/dropout.py."""
    word = word * 0x85EBCA6B
    word = word ^ (word >> 13)
    word = word * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit
def keeps(position, keys, salt, threshold):
    """Kept elements [rows, channels]: `DropoutMask.stays`, bit for bit. `position` [rows] int64, `keys` [channels]."""
    word = (position ^ salt).to(tl.uint64)
    word = (word ^ (word >> 27)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 31)) * 0x94D049BB133111EB
    word = word ^ (word >> 32)
    bits = mix_32((word & 0xFFFFFFFF).to(tl.uint32)[:, None] ^ keys.to(tl.uint32)[None, :])
    return (bits & 0x7FFFFFFF).to(tl.int32) >= threshold


@triton.jit
def query_words(token_keys, first, end, head, salt, ROWS: tl.constexpr):
    """[ROWS] uint32: `AttentionDropout.query_words` of tokens `first` ... for `head`, numbered over all ranks."""
    places = first + tl.arange(0, ROWS)
    words = tl.load(token_keys + places, mask=places < end, other=0).to(tl.uint32)
    return mix_32(words ^ mix_32((salt ^ head).to(tl.uint32)))


@triton.jit
def key_words(token_keys, tokens, first, end, ROWS: tl.constexpr):
    """[ROWS] uint32: the other half of `token_keys`, that of tokens as keys."""
    places = first + tl.arange(0, ROWS)
    return tl.load(token_keys + tokens + places, mask=places < end, other=0).to(tl.uint32)


@triton.jit
def stays(left, right, threshold):
    """[left, right] bool: `AttentionDropout.stays`, bit for bit; queries and keys may be on either side."""
    return (mix_32(left[:, None] ^ right[None, :]) & 0x7FFFFFFF).to(tl.int32) >= threshold
