"""Keyed hashes and keyed permutations: order and randomness as pure functions of a number, without any state.

Everything here is integer arithmetic modulo 2**64, so all machines get the same results. A hash is the output function of
splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) at a counter. A permutation of
`range(n)` is a Feistel network (Luby and Rackoff, 1988) on the smallest grid of rows x 2**h, h half the bits of n, that
holds n cells, walked along its cycle until it falls below n (Black and Rogaway: "Ciphers with arbitrary finite
domains", 2002). The grid has at most one row too many, so a walk is rare.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUND_BITS = np.uint64(3)
_ROUNDS = 6  # 4 are the least that theory allows; small domains mix visibly better with 6


def key(*parts: str | int) -> int:
    """64-bit key of a list of names and numbers; different lists have unrelated keys."""
    encoded = b"".join(f"{type(part).__name__}:{len(str(part))}:{part};".encode() for part in parts)
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def hash_u64(key: int | np.ndarray, counters: np.ndarray | int) -> np.ndarray:
    """[...] uint64: number `counters` of the stream `key`, uniform over 64 bits; both broadcast against each other."""
    stream = np.asarray(key, np.uint64)
    values = np.atleast_1d(np.asarray(counters)).astype(np.uint64)
    values *= _GOLDEN
    return _mixed(values + stream)


def permute(indices: np.ndarray, n: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """[...] int64: images of `indices` under the keyed permutation of range(n); all three broadcast.

    Each index must lie in range(n), n at most 2**60. The cost does not depend on n.
    """
    index, bound, stream = np.broadcast_arrays(
        np.asarray(indices, np.int64), np.asarray(n, np.int64), np.asarray(key, np.uint64)
    )
    half = ((np.frexp((bound - 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    columns = np.uint64(1) << half
    rows = (bound.astype(np.uint64) + columns - np.uint64(1)) >> half
    result = _feistel(index.astype(np.uint64), half, rows, stream).astype(np.int64)
    outside = np.nonzero(result >= bound)
    while outside[0].size:
        again = _feistel(result[outside].astype(np.uint64), half[outside], rows[outside], stream[outside])
        result[outside] = again.astype(np.int64)
        still = result[outside] >= bound[outside]
        outside = tuple(axis[still] for axis in outside)
    return result


def _feistel(values: np.ndarray, half: np.ndarray, rows: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A permutation of the grid rows x 2**half. Rounds alternate: column changed by a hash of the row, then vice versa."""
    row, column = values >> half, values & ((np.uint64(1) << half) - np.uint64(1))
    low = (np.uint64(1) << half) - np.uint64(1)
    for number in range(0, _ROUNDS, 2):
        column = column ^ (_round(key, row, number) & low)
        shift = ((_round(key, column, number + 1) >> np.uint64(32)) * rows) >> np.uint64(32)
        row = row + shift
        row = row - rows * (row >= rows)
    places: np.ndarray = (row << half) | column
    return places


def _round(key: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    """hash_u64 of (values, number), for uint64 arrays of one shape: without argument checks, which would cost time."""
    counters = values << _ROUND_BITS
    counters |= np.uint64(number)
    counters *= _GOLDEN
    counters += key
    return _mixed(counters)


def _mixed(values: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, in place."""
    values ^= values >> np.uint64(30)
    values *= _MIX_1
    values ^= values >> np.uint64(27)
    values *= _MIX_2
    values ^= values >> np.uint64(31)
    return values
