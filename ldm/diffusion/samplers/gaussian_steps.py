"""Samplers that know the Gaussian of the latents: what a Gaussian does on the way is exact, and D − L is what is left.

With L the denoiser of N(m, C) and R = D − L, in the direction of an eigenvector of C with the variance λ,

    dz/dσ = z σ / (λ + σ²) − r / σ        z, r: of x − m and of R

which has a solution in closed form where r stands still. For Gaussian data r is 0 and any number of steps is exact.
"""

import torch
from torch import Tensor

from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.samplers import Denoise, OnStep, after_step, expand_sigma, sigma_pairs
from ldm.diffusion.samplers.multistep import at_middle
from ldm.shapes import Latents


def gaussian_1s(
    denoise: Denoise, start: Latents, sigmas: Tensor, *, gaussian: LatentGaussian, on_step: OnStep | None = None
) -> Latents:
    """The exponential Gaussian step: first order in R, one denoising per step."""
    noisy = start
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        residual = denoise(noisy, expand_sigma(sigma, noisy)) - gaussian.denoise(noisy, sigma)
        noisy = after_step(on_step, step, gaussian_step(gaussian, noisy, residual, sigma, lower))
    return noisy


def gaussian_2m(
    denoise: Denoise, start: Latents, sigmas: Tensor, *, gaussian: LatentGaussian, on_step: OnStep | None = None
) -> Latents:
    """The same of second order: R is extrapolated to the middle of the step, as DPM-Solver++(2M) does with D."""
    noisy = start
    before: tuple[float, Tensor] | None = None
    for step, (sigma, lower) in enumerate(sigma_pairs(sigmas), start=1):
        residual = denoise(noisy, expand_sigma(sigma, noisy)) - gaussian.denoise(noisy, sigma)
        middle = at_middle(residual, before, sigma, lower)
        noisy = after_step(on_step, step, gaussian_step(gaussian, noisy, middle, sigma, lower))
        before = sigma, residual
    return noisy


def gaussian_step(
    gaussian: LatentGaussian, noisy: Latents, residual: Tensor, sigma: float | Tensor, lower: float | Tensor
) -> Latents:
    """m + √((λ + σ'²) / (λ + σ²)) z + √((λ + σ'²) / λ) (arsinh √λ/σ' − arsinh √λ/σ) r, in every direction.

    To σ' = 0 a constant R would go on forever; there it counts once, as in Euler's step. Levels are numbers or, above
    0, columns with one for each sample.
    """

    def of_noisy(variance: Tensor) -> Tensor:
        return ((variance + lower**2) / (variance + sigma**2)).sqrt()

    def of_residual(variance: Tensor) -> Tensor:
        if not isinstance(lower, Tensor) and lower == 0:
            return torch.ones_like(variance)
        std = variance.sqrt()
        return ((variance + lower**2) / variance).sqrt() * ((std / lower).arcsinh() - (std / sigma).arcsinh())

    mean = gaussian.mean.to(noisy.dtype)
    return mean + gaussian.scaled(noisy - mean, of_noisy) + gaussian.scaled(residual, of_residual)
