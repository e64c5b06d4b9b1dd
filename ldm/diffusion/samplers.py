"""Samplers (Euler/DDIM, Heun, DPM-Solver++, ancestral): from noise to data along a grid of noise levels.

All follow the probability-flow ODE dx/dσ = (x − D(x; σ)) / σ (Karras et al. 2022, equation 3) from the first level of
the grid to the last. If D stood still, x would move on a straight line that ends in D at σ = 0:

    x(σ') = D + σ'/σ · (x − D)

One such move is a step of Euler's method; better samplers use a better D or a better slope. When the last level is 0,
the last step is this one, and its result is the denoised tensor itself.

`denoise(noisy, sigma)` has its condition and its guidance bound already. `start` is noise times the first level, in
float32 or float64. `on_step` is told how many steps are done and shown the latents after them, which what it returns
replaces, unless that is None.
"""

import math
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
    return torch.stack([torch.randn(*shape, generator=generator(seed, "sampling noise", index)) for index in indices])


def step_noise(shape: Sequence[int], indices: Sequence[int], seed: int, step: int) -> Latents:
    """Unit Gaussian noise that a stochastic sampler adds to these images in a step; it depends on (seed, i, step)."""
    noises = [torch.randn(*shape, generator=generator(seed, "sampling step noise", index, step)) for index in indices]
    return torch.stack(noises)


def euler(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """First order, one denoising per step; DDIM (Song et al. 2021) is this method."""
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        noisy = after_step(on_step, step, torch.lerp(denoised, noisy, lower / sigma))
    return noisy


def heun(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """Second order, two denoisings per step: Euler's step, then again with the mean of the slopes at both ends.

    Karras et al. 2022, algorithm 1. A step to 0 stays Euler's, for there is no slope at 0.
    """
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        arrival = torch.lerp(denoised, noisy, lower / sigma)
        if lower > 0:
            slope = (noisy - denoised) / sigma
            slope_at_arrival = (arrival - denoise(arrival, expand_sigma(lower, arrival))) / lower
            arrival = noisy + (lower - sigma) * (slope + slope_at_arrival) / 2
        noisy = after_step(on_step, step, arrival)
    return noisy


def dpmpp_2m(denoise: Denoise, start: Latents, sigmas: Tensor, *, on_step: OnStep | None = None) -> Latents:
    """Second order, one denoising per step: D is extrapolated to the middle of the step from the one before.

    DPM-Solver++(2M) with data prediction (Lu et al. 2022, algorithm 2), linear in λ = −ln σ. The first step has
    nothing before it, and a step to 0 no middle: both are Euler's.
    """
    noisy = start
    before: tuple[float, Tensor] | None = None
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        middle = denoised
        if before is not None and lower > 0:
            higher, denoised_before = before
            ratio = math.log(sigma / lower) / math.log(higher / sigma)
            middle = denoised + ratio / 2 * (denoised - denoised_before)
        noisy = after_step(on_step, step, torch.lerp(middle, noisy, lower / sigma))
        before = sigma, denoised
    return noisy


def euler_ancestral(
    denoise: Denoise,
    start: Latents,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    on_step: OnStep | None = None,
) -> Latents:
    """The stochastic sampler of DDPM (Ho et al. 2020): each step draws from q(x(σ') | x(σ), clean = D).

    That Gaussian has mean D + (σ'/σ)² (x − D) and variance σ'² (1 − (σ'/σ)²). `noise(step)` returns its unit noise for
    step 0, 1, and so on.
    """
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas)):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        kept = (lower / sigma) ** 2
        noisy = torch.lerp(denoised, noisy, kept) + lower * math.sqrt(1 - kept) * noise(step)
        noisy = after_step(on_step, step + 1, noisy)
    return noisy


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
