"""Random numbers from a seed, a purpose and a position, never from a stream that would have to be replayed.

What training draws comes from a counter-based generator, Philox4x32-10 (Salmon et al. 2011): number `place` of image
`row` at `position` (a step, or an epoch) is a function of these, the seed and the purpose. So a process draws the
numbers of its own images alone, and any device draws them where they are needed.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of Philox4x32
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF  # the largest of 32 bits
AT_ONCE = 8192  # blocks of four words that the CPU works on at a time: they stay in its cache


def derived_seed(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed that depends on all of its arguments and on nothing else."""
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one purpose at one position, for instance `generator(0, "noise", step)`."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *position))


def seed_weights(seed: int) -> None:
    """Seed the global generator: initial weights then depend on `seed` and on what is created alone."""
    torch.manual_seed(derived_seed(seed, "weights"))


def uniform_at(seed: int, purpose: str, rows: Tensor, position: Tensor | int, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) for each of `rows`, on their device: rows x count, bit for bit on any of them.

    `position` is a whole number, or one for each row, on the same device. Number j of a row depends on (seed, purpose,
    row, position, j) alone. Nothing waits for the device, and a tensor may be one that a CUDA graph changes.
    """
    return numbers_at(uniform_numbers, seed, purpose, rows, position, count)


def normal_at(seed: int, purpose: str, rows: Tensor, position: Tensor | int, count: int) -> Tensor:
    """The same, with unit Gaussian numbers, up to ±6.8.

    Logarithm and cosine round differently in different places, so devices agree to rounding, and each with itself.
    """
    return numbers_at(normal_numbers, seed, purpose, rows, position, count)


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


def numbers_at(
    make: Callable[[Any, Any, Any], tuple[Any, Any]],
    seed: int,
    purpose: str,
    rows: Tensor,
    position: Tensor | int,
    count: int,
) -> Tensor:
    """Numbers that `make` makes of random words: rows x count.

    The key of Philox is made of seed and purpose; a counter is the number of a block of four words, the row, and the
    position's two halves.
    """
    secret, blocks = derived_seed(seed, purpose), -(-count // 4)
    key = secret & WORD, secret >> 32
    # NumPy has unsigned integers, which makes it twice as fast on a CPU. What compiles or traces takes torch.
    if type(rows) is Tensor and rows.device.type == "cpu" and not torch.compiler.is_compiling():
        row, step = rows.numpy()[:, None], np.asarray(position).reshape(-1, 1)
        made = np.empty((len(rows) * blocks, 4), np.float32)
        for part, even, odd in philox_on_cpu(key, [np.arange(blocks), row, step & WORD, step >> 32]):
            made[part, 0::2].T[...], made[part, 1::2].T[...] = make(even, odd, np)
        numbers = torch.from_numpy(made)
    else:
        at = rows.new_full((), position) if isinstance(position, int) else position.view(-1, 1)
        counter = [torch.arange(blocks, device=rows.device), rows.view(-1, 1), at & WORD, at >> 32]
        numbers = torch.stack(make(*philox(key, counter), torch), 1).flatten(0, 1).flatten(1).T
    return numbers.reshape(len(rows), -1)[:, :count].to(torch.get_default_dtype())


def philox(key: tuple[int, int], counter: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Philox4x32-10: words 0 and 2, and words 1 and 3, of each counter, int64 and each 2 x their number.

    A counter is four tensors of 32-bit numbers in int64 that broadcast together; all stays on their device.
    """
    first, second, third, fourth = counter
    for one, other in round_keys(key)[..., 0].tolist():
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
    products = np.empty((2, 2, min(inputs.shape[2], AT_ONCE)), "<u8")
    for start in range(0, inputs.shape[2], AT_ONCE):
        even, odd = inputs[..., start : start + AT_ONCE].copy()
        for number, both in enumerate(round_keys(key)):
            product = np.multiply(even, factors, out=products[number % 2, :, : even.shape[1]])
            halves = product.view("<u4")[::-1]  # low, high, low, high, ...
            np.bitwise_xor(halves[:, 1::2], odd, out=even)
            even ^= both
            odd = halves[:, 0::2]
        yield slice(start, start + even.shape[1]), even, odd


@lru_cache(maxsize=256)
def round_keys(key: tuple[int, int]) -> np.ndarray:
    """The two words of the key in each round: rounds x 2 x 1, uint32."""
    keys = (np.array(key) + np.arange(ROUNDS)[:, None] * KEY_STEPS) & WORD
    return keys.astype(np.uint32)[..., None]


@dataclass(frozen=True)
class StepRandom:
    """The random numbers of one training step, for a part of the global batch, wherever they are asked for.

    Each number depends on (seed, purpose, step) and its place in the global batch, so it is the same for any number
    of processes and accumulated micro-batches, and after any interruption.
    """

    seed: int
    step: int
    total: int  # samples in the global batch
    start: int = 0  # first of this part
    count: int = 0  # samples in this part; 0 means all

    @classmethod
    def of_part(cls, seed: int, step: int, *, total: int, parts: int, part: int) -> "StepRandom":
        """Part number `part` of a global batch that is cut into `parts` equal ones."""
        return cls(seed, step, total, start=part * (total // parts), count=total // parts)

    def normal(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Unit Gaussian numbers on a device, part x shape, as `normal_at` has them."""
        rows = self.places(device)
        return normal_at(self.seed, purpose, rows, self.step, math.prod(shape)).view(-1, *shape)

    def uniform(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1) on a device, part x shape, as `uniform_at` has them."""
        rows = self.places(device)
        return uniform_at(self.seed, purpose, rows, self.step, math.prod(shape)).view(-1, *shape)

    def places(self, device: torch.device | str = "cpu") -> Tensor:
        """The places of this part's samples in the global batch."""
        return torch.arange(self.start, self.start + (self.count or self.total), device=device)

    def rows(self, whole: Tensor) -> Tensor:
        """The rows of this part, of something that there is for the whole global batch."""
        return whole[self.start : self.start + (self.count or self.total)]

    def generator(self, purpose: str) -> torch.Generator:
        """Where numbers come from that all samples of the global batch share."""
        return generator(self.seed, purpose, self.step)
