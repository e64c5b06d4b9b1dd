"""Editing in latents: img2img, inpainting, inversion and interpolation, as functions of a denoiser and a start.

None of them knows a sampler: img2img is a start with less noise, inpainting a denoiser that knows a part of its answer,
and inversion the way of the samplers gone backwards.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from ldm.diffusion.noise import broadcast_sigma
from ldm.diffusion.samplers import Denoise, StepNoise, expand_sigma
from ldm.diffusion.samplers.one_step import heun_step
from ldm.errors import RequestError
from ldm.shapes import Latents, NoiseLevels

JUMP = 3  # noise levels that resampling goes down and up again
FIXED_POINT_STEPS = 4  # of the equation D(x; σ) = latents at the lowest noise level, where D is nearly the identity


def levels_of_strength(sigmas: Tensor, strength: float) -> Tensor:
    """The last part of a grid of noise levels, which an image with noise of its first level is denoised along.

    As diffusers has it, strength is the share of the steps: 1 is the whole grid, and with k of n steps the last k are
    left. Between two such strengths the first level lies between theirs, so that the noise goes to 0 with the strength.
    """
    check_strength(strength)
    steps = len(sigmas) - 1
    place = (1 - strength) * steps
    before = min(math.floor(place + 1e-6), steps - 1)
    share = place - before
    if share < 1e-6:
        return sigmas[before:]
    higher, lower = sigmas[before], sigmas[before + 1]
    first = higher ** (1 - share) * lower**share if lower > 0 else higher * (1 - share)
    return torch.cat([first.view(1), sigmas[before + 1 :]])


def check_strength(strength: float) -> None:
    """Raise RequestError for a strength outside (0, 1]."""
    if not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise RequestError("strength", f"{strength} must be above 0 and at most 1")


def keeping_known(denoise: Denoise, known: Latents, hidden: Tensor) -> Denoise:
    """The denoiser of inpainting: its answer is what is known, and the denoiser's own where `hidden` is true.

    Along the ODE latents that start as known + σ · noise then stay so at every level, and end as what is known. That is
    what RePaint (Lugmayr et al. 2022) puts there in every step, with the noise of the start in place of fresh one.
    """
    return lambda noisy, sigma: torch.where(hidden, denoise(noisy, sigma), known.to(noisy.dtype))


def resample(
    denoise_along: Callable[[Latents, Tensor, StepNoise], Latents],
    noisy: Latents,
    sigmas: Tensor,
    *,
    times: int,
    noise: StepNoise,
) -> Latents:
    """Denoise every few levels `times` times, each time after fresh noise has led back up to where they begin.

    Resampling of RePaint (Lugmayr et al. 2022, algorithm 1): what is hidden and what is known come to fit, as each is
    denoised again beside what the other has become. `denoise_along` is given the noisy latents, the levels and the
    noise of the steps.
    """
    if times == 1:
        return denoise_along(noisy, sigmas, noise)
    stride, runs = len(sigmas) + 1, 0  # each run, and the noise before it, has numbers of its own
    for first in range(0, len(sigmas) - 1, JUMP):
        levels = sigmas[first : first + JUMP + 1]
        high, low = levels[0].item(), levels[-1].item()
        for again in range(times):
            if again:
                noisy = noisy + math.sqrt(high**2 - low**2) * noise(stride * runs)
            noisy = denoise_along(noisy, levels, shifted(noise, stride * runs + 1))
            runs += 1
    return noisy


def shifted(noise: StepNoise, by: int) -> StepNoise:
    """The noise of later steps."""
    return lambda step: noise(by + step)


def inverted(denoise: Denoise, latents: Latents, sigmas: Tensor) -> Latents:
    """The noisy latents at the first level of a grid that the probability-flow ODE brings to these latents.

    Heun's steps from the lowest level to the highest (Karras et al. 2022; DDIM inversion with a better solver), so that
    the way back ends at the latents up to the solver's error. The last step to 0 is D itself, and is undone by solving
    D(x; σ) = latents.
    """
    rising = sigmas[:-1].flip(0).tolist()
    noisy, level = latents, expand_sigma(rising[0], latents)
    for _ in range(FIXED_POINT_STEPS):
        noisy = latents + noisy - denoise(noisy, level)
    for lower, higher in pairwise(rising):
        noisy = heun_step(denoise, noisy, lower, higher)
    return noisy


def spherical(one: Tensor, other: Tensor, share: float | Tensor) -> Tensor:
    """From one tensor to another on the arc between them (Shoemake 1985), sample by sample; the ends are exact.

    Between independent Gaussian tensors the way is Gaussian noise all along, where a straight line would be too short.
    `share`, 0 to 1, is one number, or one for each sample.
    """
    cosine = functional.cosine_similarity(one.flatten(1), other.flatten(1)).cpu().double()
    angle = cosine.clamp(-1, 1).acos().clamp(1e-6, math.pi - 1e-6)  # opposite ones have no arc: any is taken
    share = torch.as_tensor(share, dtype=torch.float64)
    of_one, of_other = ((part * angle).sin() / angle.sin() for part in (1 - share, share))
    return broadcast_sigma(of_one.to(one), one) * one + broadcast_sigma(of_other.to(one), one) * other


def between_conditions(one: Denoise, other: Denoise, share: Tensor) -> Denoise:
    """The denoiser on the straight line between those of two conditions; `share`, 0 to 1, is one for each sample."""

    def denoise(noisy: Latents, sigma: NoiseLevels) -> Latents:
        denoised = one(noisy, sigma)
        return torch.lerp(denoised, other(noisy, sigma), broadcast_sigma(share.to(denoised), denoised))

    return denoise
