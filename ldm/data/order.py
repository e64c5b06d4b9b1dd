"""The order of a pass over a data set: a shuffle in memory or, of more images, a keyed permutation of any size."""

import math
from typing import TypeAlias, overload

import numpy as np
import torch

from ldm.randomness import derived_seed

MOST_SHUFFLED = 2**20  # images whose order is kept in memory, at four bytes each
ROUNDS = 6


class KeyedPermutation:
    """A random-looking permutation of `count` numbers that is computed place by place, in constant memory.

    A Feistel network over the pairs (left, right) of a rectangle that just holds `count` numbers: in turn, each half
    is shifted by a hash of the other one and the round's key, which can be undone. The few places that fall outside
    of `count` are permuted again until they do not (cycle walking; Black and Rogaway 2002).
    """

    def __init__(self, count: int, key: int):
        self.count = count
        left = math.isqrt(max(count - 1, 0)) + 1
        self.left, self.right = np.uint64(left), np.uint64(-(-count // left))
        self.keys = mixed(np.arange(1, ROUNDS + 1, dtype=np.uint64) * _GOLDEN + np.uint64(key))

    def __len__(self) -> int:
        return self.count

    @overload
    def __getitem__(self, places: int) -> int: ...

    @overload
    def __getitem__(self, places: np.ndarray) -> np.ndarray: ...

    def __getitem__(self, places: "int | np.ndarray") -> "int | np.ndarray":
        """Which numbers come at these places, from 0 on."""
        asked = np.asarray(places)
        if asked.size and not (asked.min() >= 0 and asked.max() < self.count):
            raise IndexError(f"a place outside of 0 to {self.count - 1}")
        numbers = self._once(asked.reshape(-1).astype(np.uint64))
        while len(outside := np.flatnonzero(numbers >= self.count)):
            numbers[outside] = self._once(numbers[outside])
        found = numbers.astype(np.int64).reshape(asked.shape)
        return found if isinstance(places, np.ndarray) else int(found)

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        left: np.ndarray
        right: np.ndarray
        left, right = numbers // self.right, numbers % self.right
        for number, key in enumerate(self.keys):
            if number % 2:
                right = (right + mixed(left ^ key) % self.right) % self.right
            else:
                left = (left + mixed(right ^ key) % self.left) % self.left
        return left * self.right + right


Order: TypeAlias = "np.ndarray | KeyedPermutation"


def order_of(count: int, seed: int, purpose: str, *position: int) -> Order:
    """A permutation of `count` numbers that depends on all of its arguments; what is at a place, or an array of them.

    Up to 1,048,576 numbers it is one of all permutations with equal probability.
    """
    key = derived_seed(seed, purpose, *position)
    if count > MOST_SHUFFLED:
        return KeyedPermutation(count, key)
    return torch.randperm(count, generator=torch.Generator().manual_seed(key)).numpy().astype(np.int32)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def mixed(values: np.ndarray) -> np.ndarray:
    """A hash of 64 bits in which every bit depends on every bit: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
