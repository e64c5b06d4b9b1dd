"""Philox4x32-10 (Salmon et al. 2011), a counter-based generator: random words as a function of key and counter."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF  # the largest of 32 bits
AT_ONCE = 8192  # blocks of four words that the CPU works on at a time: they stay in its cache

Make: TypeAlias = Callable[[Any, Any, Any], tuple[Any, Any]]  # numbers of words 0 and 2, of words 1 and 3, in a library


Traced = TypeVar("Traced", bound=Callable[..., Any])


def constant_when_traced(function: Traced) -> Traced:
    """What `torch.compiler.assume_constant_result` does, without the two seconds in which that imports the compiler."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


def uniform_numbers(even: Any, odd: Any, library: Any) -> tuple[Any, Any]:
    """Of each word its upper 24 bits, as a fraction; exact in float32."""
    return as_float(even >> 8) * 2.0**-24, as_float(odd >> 8) * 2.0**-24


def normal_numbers(even: Any, odd: Any, library: Any) -> tuple[Any, Any]:
    """√(−2 ln u) cos 2πv and √(−2 ln u) sin 2πv, u and v being one word and the next (Box and Muller 1958)."""
    radius = library.sqrt(-2 * library.log(as_float(even) * 2.0**-32 + 2.0**-33))  # of what lies in (0, 1]
    angle = as_float(odd) * (2 * math.pi * 2.0**-32)
    return radius * library.cos(angle), radius * library.sin(angle)


def as_float(words: Any) -> Any:
    """Words of either library in float32."""
    return words.astype(np.float32) if isinstance(words, np.ndarray) else words.float()


def numbers_in_numpy(make: Make, key: tuple[int, int], rows: Tensor, position: Tensor | int, count: int) -> Tensor:
    """Numbers that `make` makes of random words, rows x `count` or a few more, on the CPU.

    NumPy has unsigned integers, which makes it twice as fast there. A counter is the number of a block of four words,
    the row, and the position's two halves.
    """
    blocks, row, step = -(-count // 4), rows.numpy()[:, None], np.asarray(position).reshape(-1, 1)
    made = np.empty((len(rows) * blocks, 4), np.float32)
    together = np.empty((min(len(made), AT_ONCE), 4), np.float32)  # in the cache, where it costs little to interleave
    for part, even, odd in philox_on_cpu(key, [np.arange(blocks), row, step & WORD, step >> 32]):
        numbers = together[: even.shape[1]]
        (numbers[:, 0], numbers[:, 2]), (numbers[:, 1], numbers[:, 3]) = make(even, odd, np)
        made[part] = numbers
    return torch.from_numpy(made).view(len(rows), -1)


def numbers_in_torch(make: Make, key: tuple[int, int], rows: Tensor, position: Tensor | int, count: int) -> Tensor:
    """The same in operations of torch, on any device; it can be traced and compiled."""
    at = rows.new_full((), position) if isinstance(position, int) else position.view(-1, 1)
    counter = [torch.arange(-(-count // 4), device=rows.device), rows.view(-1, 1), at & WORD, at >> 32]
    return torch.stack(make(*philox(key, counter), torch), 1).flatten(0, 1).flatten(1).T.reshape(len(rows), -1)


def philox(key: tuple[int, int], counter: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Philox4x32-10: words 0 and 2, and words 1 and 3, of each counter, int64 and each 2 x their number.

    A counter is four tensors of 32-bit numbers in int64 that broadcast together; all stays on their device.
    """
    first, second, third, fourth = counter
    for one, other in words_of_rounds(key):
        left, right = first * MULTIPLIERS[0], third * MULTIPLIERS[1]  # all 64 bits of them, of which one is the sign
        first = ((right >> 32) ^ second ^ one) & WORD
        third = ((left >> 32) ^ fourth ^ other) & WORD
        second, fourth = right & WORD, left & WORD
    words = torch.broadcast_tensors(first, second, third, fourth)
    return torch.stack(words[0::2]), torch.stack(words[1::2])


def philox_on_cpu(
    key: tuple[int, int], counter: Sequence[np.ndarray]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The same by NumPy, in uint32, for as many counters at a time as stay in the cache, with the place of these."""
    shape = np.broadcast_shapes(*(each.shape for each in counter))
    inputs = np.empty((4, *shape), np.uint32)
    for place, each in zip((0, 2, 1, 3), counter, strict=True):
        inputs[place] = each
    inputs = inputs.reshape(2, 2, -1)
    factors = np.array(MULTIPLIERS, np.uint64)[:, None]
    for start in range(0, inputs.shape[2], AT_ONCE):
        even, odd = inputs[..., start : start + AT_ONCE].copy()
        if start == 0 or even.shape[1] < AT_ONCE:
            products = np.empty((2, *even.shape), "<u8")  # of this round and of the one before it
            halves = products.view("<u4")[:, ::-1]  # low, high, low, high, ...
            in_turn = [*zip(products, halves[..., 0::2], halves[..., 1::2], strict=True)] * (ROUNDS // 2)
        for (product, low, high), both in zip(in_turn, round_keys(key), strict=True):
            np.multiply(even, factors, out=product)
            np.bitwise_xor(high, odd, out=even)
            np.bitwise_xor(even, both, out=even)
            odd = low
        yield slice(start, start + even.shape[1]), even, odd


@constant_when_traced
def words_of_rounds(key: tuple[int, int]) -> list[list[int]]:
    """The two words of the key in each round."""
    words: list[list[int]] = round_keys(key)[..., 0].tolist()
    return words


@lru_cache(maxsize=256)
def round_keys(key: tuple[int, int]) -> np.ndarray:
    """The two words of the key in each round: rounds x 2 x 1, uint32."""
    keys = (np.array(key) + np.arange(ROUNDS)[:, None] * KEY_STEPS) & WORD
    return keys.astype(np.uint32)[..., None]
