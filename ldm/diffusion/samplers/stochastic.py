"""Samplers that draw noise on the way: ancestral, DDIM with eta, EDM's churn, restart, and that of consistency models.

`noise(step)` returns the unit noise of a step, from 0; that of the restarts has the numbers after those of the grid.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.samplers import Denoise, OnStep, StepNoise, after_step, expand_sigma, sigma_pairs
from ldm.diffusion.samplers.one_step import heun_step
from ldm.errors import RequestError
from ldm.shapes import Latents


def euler_ancestral(
    denoise: Denoise,
    start: Latents,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    on_step: OnStep | None = None,
) -> Latents:
    """The stochastic sampler of DDPM (Ho et al. 2020): each step draws from q(x(σ') | x(σ), clean = D).

    That Gaussian has mean D + (σ'/σ)² (x − D) and variance σ'² (1 − (σ'/σ)²).
    """
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas)):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        kept = (lower / sigma) ** 2
        noisy = torch.lerp(denoised, noisy, kept) + lower * math.sqrt(1 - kept) * noise(step)
        noisy = after_step(on_step, step + 1, noisy)
    return noisy


def ddim(
    denoise: Denoise,
    start: Latents,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    eta: float = 0.0,
    on_step: OnStep | None = None,
) -> Latents:
    """DDIM (Song et al. 2021, equation 16): Euler with a share of fresh noise, from none at eta 0 to ancestral at 1.

    The noise has the variance η² σ'² (1 − (σ'/σ)²), and what is left of that of x − D adds up to σ'² with it.
    """
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas)):
        denoised = denoise(noisy, expand_sigma(sigma, noisy))
        fresh = eta * lower * math.sqrt(1 - (lower / sigma) ** 2)
        noisy = torch.lerp(denoised, noisy, math.sqrt(lower**2 - fresh**2) / sigma if fresh else lower / sigma)
        if fresh:
            noisy = noisy + fresh * noise(step)
        noisy = after_step(on_step, step + 1, noisy)
    return noisy


def heun_churn(
    denoise: Denoise,
    start: Latents,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    churn: float = 40.0,
    churn_min: float = 0.1,
    churn_max: float = 100.0,
    churn_noise: float = 1.003,
    on_step: OnStep | None = None,
) -> Latents:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2): a little noise, then Heun's step from that level.

    Between `churn_min` and `churn_max` σ rises by the factor 1 + min(churn / steps, √2 − 1), with noise of standard
    deviation `churn_noise`. The defaults are those of the paper for ImageNet, in units of σ_data.
    """
    check_order("churn", churn_min, churn_max)
    noisy, growth = start, min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas)):
        raised = sigma * (1 + growth) if churn_min <= sigma <= churn_max else sigma
        if raised > sigma:
            noisy = noisy + math.sqrt(raised**2 - sigma**2) * churn_noise * noise(step)
        noisy = after_step(on_step, step + 1, heun_step(denoise, noisy, raised, lower))
    return noisy


def restart(
    denoise: Denoise,
    start: Latents,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    restarts: int = 2,
    restart_min: float = 0.1,
    restart_max: float = 0.6,
    on_step: OnStep | None = None,
) -> Latents:
    """Restart sampling (Xu et al. 2023): Heun, and a part of the way `restarts` times more, each after fresh noise.

    The part lies between the levels of the grid next to `restart_min` and `restart_max`, inside these; if there are not
    two it is Heun. The defaults are those of the paper for CIFAR-10, in units of σ_data.
    """
    check_order("restart", restart_min, restart_max)
    noisy, inside = start, [level for level in sigmas.tolist() if restart_min <= level <= restart_max and level > 0]
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        noisy = heun_step(denoise, noisy, sigma, lower)
        if len(inside) > 1 and lower == inside[-1]:
            for number in range(restarts):
                noisy = noisy + math.sqrt(inside[0] ** 2 - lower**2) * noise(len(sigmas) - 1 + number)
                for higher, following in pairwise(inside):
                    noisy = heun_step(denoise, noisy, higher, following)
        noisy = after_step(on_step, step, noisy)
    return noisy


def check_order(name: str, low: float, high: float) -> None:
    """Raise RequestError for two levels, one of which may be a default, between which there is nothing."""
    if not low < high:
        raise RequestError(f"{name}_min", f"{low:g} must be below {name}_max, which is {high:g}: give both")


def consistency(
    denoise: Denoise,
    start: Latents,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    on_step: OnStep | None = None,
) -> Latents:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): an answer is a sample, noised anew for a better.

    `denoise` is a consistency function: it answers with where the path of the noisy latents ends, at σ = 0.
    """
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas)):
        noisy = denoise(noisy, expand_sigma(sigma, noisy))
        if lower:
            noisy = noisy + lower * noise(step)
        noisy = after_step(on_step, step + 1, noisy)
    return noisy
