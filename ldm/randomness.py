"""Random numbers from a seed, a purpose and a position, never from a stream that would have to be replayed.

What training draws comes from a counter-based generator, Philox4x32-10 (Salmon et al. 2011): number `place` of image
`row` at `position` (a step, or an epoch) is a function of these, the seed and the purpose. So a process draws the
numbers of its own images alone, and any device draws them where they are needed.
"""

import hashlib
import math
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from ldm.philox.counter_based import (
    WORD,
    Make,
    constant_when_traced,
    normal_numbers,
    numbers_in_numpy,
    numbers_in_torch,
    uniform_numbers,
)

HAS_TRITON = find_spec("triton") is not None


@constant_when_traced
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
    return numbers_at("uniform", uniform_numbers, seed, purpose, rows, position, count)


def normal_at(seed: int, purpose: str, rows: Tensor, position: Tensor | int, count: int) -> Tensor:
    """The same, with unit Gaussian numbers, up to ±6.8.

    Logarithm and cosine round differently in different places, so devices agree to rounding, and each with itself.
    """
    return numbers_at("normal", normal_numbers, seed, purpose, rows, position, count)


def numbers_at(
    kind: str, make: Make, seed: int, purpose: str, rows: Tensor, position: Tensor | int, count: int
) -> Tensor:
    """Numbers that `make` makes of random words, rows x count; the key of Philox is made of seed and purpose."""
    secret = derived_seed(seed, purpose)
    key, plain = (secret & WORD, secret >> 32), type(rows) is Tensor and not torch.compiler.is_compiling()
    if plain and rows.device.type == "cpu":
        numbers = numbers_in_numpy(make, key, rows, position, count)
    elif plain and rows.device.type == "cuda" and HAS_TRITON:
        from ldm.philox.kernel import numbers_in_triton

        numbers = numbers_in_triton(kind, key, rows, position, count)
    else:
        numbers = numbers_in_torch(make, key, rows, position, count)
    return numbers[:, :count].to(torch.get_default_dtype())


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

    def generator(self, purpose: str) -> torch.Generator:
        """Where numbers come from that all samples of the global batch share."""
        return generator(self.seed, purpose, self.step)
