"""Random numbers from a seed, a purpose and a position, never from a stream that would have to be replayed."""

import hashlib
from dataclasses import dataclass

import torch


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


@dataclass(frozen=True)
class StepRandom:
    """The random numbers of one training step, drawn for the global batch and cut to the part that is asked for.

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

    def normal(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Unit Gaussian numbers, part x shape; drawn on the CPU, so that a GPU trains on the same ones."""
        return moved(self.rows(torch.randn(self.total, *shape, generator=self.generator(purpose))), device)

    def uniform(self, purpose: str, *shape: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Uniform numbers in [0, 1), part x shape; drawn on the CPU like all others."""
        return moved(self.rows(torch.rand(self.total, *shape, generator=self.generator(purpose))), device)

    def generator(self, purpose: str) -> torch.Generator:
        """Where numbers for the whole global batch come from."""
        return generator(self.seed, purpose, self.step)

    def rows(self, whole: torch.Tensor) -> torch.Tensor:
        """The rows of this part of the global batch."""
        return whole[self.start : self.start + (self.count or self.total)]


def moved(drawn: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The numbers on a device, without making the host wait for it, as a copy from pageable memory would."""
    if torch.device(device).type != "cuda":
        return drawn.to(device)
    return drawn.pin_memory().to(device, non_blocking=True)
