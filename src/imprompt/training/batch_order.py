"""The samples of each step as a pure function of (seed, step), whatever the number of processes and restarts.

    row = rows[π(i mod n)]        π: a permutation of 0 … n - 1, another one in every epoch i div n

The permutation is computed, not stored: a Feistel network over the next power of four, walked until it lands
inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"), so a billion rows cost what ten do.
With buckets every batch has one shape. A round reads each bucket once, and a permutation of the same kind
gives the order of its batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ROUNDS = 6
_MASK = (1 << 64) - 1


class BatchOrder:
    """An endless sequence of batches of row numbers.

    Args:
        buckets: shape → row numbers of that shape; at least one row in all
        batch_size: rows of a batch
        seed: seed of the order
    """

    def __init__(self, buckets: Mapping[Any, Sequence[int] | np.ndarray], batch_size: int, seed: int) -> None:
        self.rows = [
            np.asarray(buckets[bucket]) for bucket in sorted(buckets, key=repr) if len(buckets[bucket])
        ]
        self.batch_size, self.seed = batch_size, seed
        self.batches = [-(-len(rows) // batch_size) for rows in self.rows]
        """Number of batches of each bucket in a round."""

    def batch(self, step: int) -> list[int]:
        """Return the rows of a step, all of one bucket."""
        turn, place = divmod(step, sum(self.batches))
        place = int(permute(np.array([place]), sum(self.batches), (self.seed, turn, -1))[0])
        bucket = 0
        while place >= self.batches[bucket]:
            place -= self.batches[bucket]
            bucket += 1
        first = (turn * self.batches[bucket] + place) * self.batch_size
        return self._rows_at(bucket, np.arange(first, first + self.batch_size))

    def _rows_at(self, bucket: int, places: np.ndarray) -> list[int]:
        """Return the rows at places of the bucket's epochs, which follow one another without a gap."""
        rows = self.rows[bucket]
        epochs, insides = places // len(rows), places % len(rows)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            indices[now] = permute(insides[now], len(rows), (self.seed, int(epoch), bucket))
        return rows[indices].tolist()


def permute(places: np.ndarray, count: int, key: tuple[int, ...]) -> np.ndarray:
    """Map places by a permutation of 0 … count - 1; every key has a permutation of its own."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = [mix_bits(*key, number) for number in range(_ROUNDS)]
    result = _feistel(places.astype(np.uint64), half, keys)
    while (outside := result >= count).any():
        result[outside] = _feistel(result[outside], half, keys)
    return result.astype(np.int64)


def mix_bits(*numbers: int) -> int:
    """Return 64 bits that depend on every bit of every number (SplitMix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def _feistel(values: np.ndarray, half: int, keys: Sequence[int]) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        left, right = right, left ^ (_hash_round(right, key) & mask)
    return (left << np.uint64(half)) | right


def _hash_round(values: np.ndarray, key: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        bits = (values ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(32))
