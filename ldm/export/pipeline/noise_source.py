"""The random numbers of a pipeline's images: from a seed, or from generators as diffusers' users have them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ldm.diffusion.samplers import starting_noise, step_noise
from ldm.errors import RequestError
from ldm.shapes import Latents

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]


@dataclass(frozen=True)
class NoiseSource:
    """Unit Gaussian noise for some images: from a seed, or from a generator, or from one for each image."""

    shape: tuple[int, ...]  # images x channels x height x width
    device: torch.device
    seed: int
    generator: Generators | None
    numbers: Sequence[int] | None = None  # of the images; None: all of them

    def of(self, numbers: Tensor) -> "NoiseSource":
        """Those of some of the images."""
        indices, generator = numbers.tolist(), self.generator
        if isinstance(generator, Sequence):
            generator = [generator[index] for index in indices]
        return replace(self, shape=(len(indices), *self.shape[1:]), generator=generator, numbers=indices)

    def start(self, latents: Tensor | None) -> Latents:
        """Unit noise to start from, or what is given in its place."""
        if latents is not None:
            if tuple(latents.shape) != self.shape:
                raise RequestError("latents", f"of shape {list(latents.shape)} should be of {list(self.shape)}")
            return latents.to(self.device).float()
        given = self.generator if isinstance(self.generator, Sequence) else [self.generator]
        if self.generator is not None and not all(isinstance(each, torch.Generator) for each in given):
            raise RequestError("generator", f"{self.generator!r} is no torch.Generator; a number is given as seed")
        if isinstance(self.generator, Sequence) and len(self.generator) != self.shape[0]:
            raise RequestError("generator", f"is a list of {len(self.generator)} for {self.shape[0]} images")
        if self.generator is not None:
            return self.drawn()
        return starting_noise(self.shape[1:], range(self.shape[0]), self.seed).to(self.device)

    def step(self, step: int) -> Latents:
        """Unit noise of a step."""
        if self.generator is not None:
            return self.drawn()
        numbers = self.numbers if self.numbers is not None else range(self.shape[0])
        return step_noise(self.shape[1:], numbers, self.seed, step).to(self.device)

    def drawn(self) -> Latents:
        """The next numbers of the generator."""
        generator = list(self.generator) if isinstance(self.generator, Sequence) else self.generator
        noise: Latents = randn_tensor(self.shape, generator=generator, device=self.device, dtype=torch.float32)
        return noise
