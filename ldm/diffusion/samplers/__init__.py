"""Samplers: from noise to data along a grid of noise levels. This module is their contract; the families stand beside.

All follow the probability-flow ODE dx/dσ = (x − D(x; σ)) / σ (Karras et al. 2022, equation 3) from the first level of
the grid to the last. If D stood still, x would move on a straight line that ends in D at σ = 0:

    x(σ') = D + σ'/σ · (x − D)

One such move is a step of Euler's method; better samplers use a better D or a better slope. When the last level is 0,
the last step is this one, and its result is the denoised tensor itself (the Gaussian steps have a better one).

`denoise(noisy, sigma)` has its condition and its guidance bound already. `start` is noise times the first level, in
float32 or float64. `on_step` is told how many steps are done and shown the latents after them, which what it returns
replaces, unless that is None.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ldm.randomness import generator
from ldm.shapes import Latents, NoiseLevels

Denoise: TypeAlias = Callable[[Latents, NoiseLevels], Latents]
OnStep: TypeAlias = Callable[[int, Latents], Latents | None]
StepNoise: TypeAlias = Callable[[int], Latents]  # step -> unit noise of the shape and on the device of the start


class Sampler(Protocol):
    """What every sampler is; a stochastic one (`SamplerFacts`) takes `noise: StepNoise` beside."""

    def __call__(
        self, denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None
    ) -> Latents: ...


def starting_noise(shape: Sequence[int], indices: Sequence[int], seed: int) -> Latents:
    """Unit Gaussian noise for the images with these indices, each of `shape`; float32 on the CPU.

    Image i of a seed starts from the same bits in any batch and at any place in it.
    """
    return torch.stack([_unit_noise(shape, seed, "sampling noise", index) for index in indices])


def step_noise(shape: Sequence[int], indices: Sequence[int], seed: int, step: int) -> Latents:
    """Unit Gaussian noise that a stochastic sampler adds to these images in a step; it depends on (seed, i, step)."""
    return torch.stack([_unit_noise(shape, seed, "sampling step noise", index, step) for index in indices])


def _unit_noise(shape: Sequence[int], seed: int, purpose: str, *position: int) -> Tensor:
    """The same whatever torch's default type and device are."""
    return torch.randn(*shape, generator=generator(seed, purpose, *position), dtype=torch.float32, device="cpu")


def sigma_pairs(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    """Neighboring noise levels, higher and lower, one pair per step."""
    yield from pairwise(sigmas.tolist())


def after_step(on_step: OnStep | None, step: int, noisy: Latents) -> Latents:
    """The latents after a step: as they are, or as `on_step` wants them."""
    wanted = None if on_step is None else on_step(step, noisy)
    return noisy if wanted is None else wanted


def expand_sigma(sigma: float, noisy: Latents) -> NoiseLevels:
    """The same noise level for every sample of `noisy`."""
    return noisy.new_full((len(noisy),), sigma)
