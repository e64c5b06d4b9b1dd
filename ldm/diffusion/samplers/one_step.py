"""Samplers without memory and without noise: Euler (DDIM) and Heun."""

import torch
from torch import Tensor

from ldm.diffusion.samplers import Denoise, OnStep, after_step, expand_sigma, sigma_pairs
from ldm.shapes import Latents


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
        noisy = after_step(on_step, step, heun_step(denoise, noisy, sigma, lower))
    return noisy


def heun_step(denoise: Denoise, noisy: Latents, sigma: float, lower: float) -> Latents:
    """One step of Heun's method, from `sigma` to `lower`."""
    denoised = denoise(noisy, expand_sigma(sigma, noisy))
    arrival = torch.lerp(denoised, noisy, lower / sigma)
    if lower > 0:
        slope = (noisy - denoised) / sigma
        slope_at_arrival = (arrival - denoise(arrival, expand_sigma(lower, arrival))) / lower
        arrival = noisy + (lower - sigma) * (slope + slope_at_arrival) / 2
    return arrival
