"""Samplers on data whose best denoiser and whose whole path are known: N(μ, s²), where

    x(σ) = μ + (x(σ_max) − μ) √((s² + σ²) / (s² + σ_max²))

and a mixture of two Gaussians, where the denoiser is not linear and, as always in one dimension, the share of the noisy
data that lies below x(σ) stays the same all along the path.

A method of order p divides its error by 2^p when its steps are halved. That is measured at σ_min: a grid that ends at 0
has a last step that never gets shorter. Where noise is drawn there is no path, but the variance of the samples, which
follows without drawing any: all is linear on Gaussian data, so it is the sum over what each noise becomes by itself.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.noise import broadcast_sigma, karras_sigmas
from ldm.diffusion.samplers import Denoise
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.training import reproducible

MEAN, STD = 0.7, 0.6
CENTERS, SHARES, SPREAD = (-1.0, 0.8), (0.4, 0.6), 0.3  # of the mixture
HIGHEST, LOWEST = 20.0, 0.02  # noise levels
LEAST = {1: 1.8, 2: 3.5, 3: 6.5, 4: 11.0}  # by which the error falls, of each order
ERROR = {1: 0.1, 2: 2e-3, 3: 1e-4, 4: 2e-5}  # after 128 steps
# Options with which a stochastic sampler is measured beside its defaults. EDM makes its noise a little too large, and
# no churn is as large as the cap on it, below which its order shows.
VARIANTS: Mapping[str, list[dict[str, float]]] = {
    "ddim": [{"eta": 0.5}, {"eta": 1.0}],
    "dpm++2m_sde": [{"eta": 0.5}, {}],
    "heun_churn": [{"churn": 5.0, "churn_noise": 1.0}],
}


def checks(*, small: bool = False) -> Iterator[Check]:
    """Every sampler of the table: its order, its step counts, its calls; takes hardly any time, so small is whole."""
    for name, facts in SAMPLERS.items():
        if facts.consistency:
            continue  # it is for another function than a denoiser, with a check of its own
        if facts.stochastic:
            for options in VARIANTS.get(name, [{}]):
                yield of_variance(name, options)
            yield of_mean(name)
        else:
            yield from of_order(name)
        yield of_exactness(name, 20 if small else 100) if facts.gaussian else of_any_count(name, 20 if small else 100)
        yield of_calls(name)


@reproducible("truth samplers order")
def of_order(name: str) -> list[Check]:
    """Distances from the exact path after ever more steps; of a Gaussian step on the mixture alone."""
    found, order = [], SAMPLERS[name].order
    for data in (mixture_error,) if SAMPLERS[name].gaussian else (gaussian_error, mixture_error):
        errors = [data(name, count) for count in (32, 64, 128)]
        fell, title = least_fall(errors), "a Gaussian" if data is gaussian_error else "a mixture"
        found += [
            at_least(f"{name}, order {order}: error on {title} over that with twice the steps", fell, LEAST[order]),
            at_most(f"{name}: error on {title} after 128 steps", errors[-1], ERROR[order]),
        ]
    return found


@reproducible("truth samplers variance")
def of_variance(name: str, options: dict[str, float]) -> Check:
    """By how much the error of the samples' variance falls when the steps are halved."""
    errors = [variance_error(name, count, **options) for count in (32, 64, 128)]
    title = " ".join([name, *(f"{option} {value:g}" for option, value in options.items())])
    order = SAMPLERS[name].order
    return at_least(
        f"{title}, order {order}: variance error, n over 2n steps",
        least_fall(errors),
        LEAST[order],
    )


@reproducible("truth samplers mean")
def of_mean(name: str) -> Check:
    """Noise has no mean, so without any the sampler follows the mean of the samples: to that of the data."""
    start = torch.full((1, 1, 1, 1), MEAN)
    final = sampled(name, denoise, start, karras_sigmas(10, LOWEST, HIGHEST, 7.0), noise=lambda step: 0 * start)
    return at_most(f"{name}: mean of samples, off", (final - MEAN).abs().max(), 1e-12)


@reproducible("truth samplers count")
def of_any_count(name: str, most: int) -> Check:
    """Where the data are one image, any number of steps ends on it."""
    image = torch.linspace(-1, 1, 12).view(1, 12)
    start = 40 * torch.randn(2, 12, generator=generator(0, "truth samplers start"))
    ends = [
        sampled(name, lambda noisy, sigma: image.expand_as(noisy), start, karras_sigmas(steps, 0.01, 40.0, 7.0))
        for steps in range(1, most + 1)
    ]
    off = max(float((end - image).abs().max()) for end in ends)
    return at_most(f"{name}, 1 to {most} steps: distance to the only image, largest", off, 1e-12)


@reproducible("truth samplers exact")
def of_exactness(name: str, most: int) -> Check:
    """Of Gaussian data any number of steps, the last one to 0, makes exactly the sample of the same unit noise."""
    gaussian = LatentGaussian((2, 2, 1), 3)
    gaussian.mean.copy_(torch.linspace(-1, 1, 4).view(2, 2, 1))
    gaussian.basis.copy_(torch.linalg.qr(torch.randn(4, 4)).Q[:, :3])
    gaussian.eigenvalues.copy_(torch.tensor([4.0, 1.0, 0.05]))
    gaussian.rest.fill_(0.01)
    unit, off = torch.randn(3, 2, 2, 1), 0.0
    for steps in range(1, most + 1):
        sigmas = karras_sigmas(steps, 0.01, 40.0, 7.0)
        start = gaussian.noised(unit, sigmas[0].item())
        final = sampled(name, gaussian.denoise, start, sigmas, gaussian=gaussian)
        off = max(off, float((final - gaussian.sample(unit)).abs().max()))
    return at_most(f"{name}, 1 to {most} steps: |sample - exact sample of Gaussian data|", off, 1e-10)


@reproducible("truth samplers calls")
def of_calls(name: str) -> Check:
    """As many calls of the denoiser per step as the table says; the last step, to 0, needs one alone."""
    levels: list[float] = []

    def counting(noisy: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma[0]))
        return denoise(noisy, sigma)

    sampled(name, counting, torch.ones(1, 1, 1, 1), karras_sigmas(10, 0.02, 20.0, 7.0), **without_restarts(name))
    calls = SAMPLERS[name].calls
    return at_most(
        f"{name}: calls of the denoiser in 10 steps less {calls} a step", abs(len(levels) - 9 * calls - 1), 0
    )


def without_restarts(name: str) -> dict[str, Any]:
    """The option that turns off what needs calls of its own."""
    return {"restarts": 0} if "restarts" in SAMPLERS[name].options else {}


def sampled(name: str, denoiser: Denoise, start: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """The result of a sampler of the table, with noise of a fixed seed and the Gaussian of the data, where it asks."""
    facts = SAMPLERS[name]

    def noise(step: int) -> Tensor:
        return torch.randn(start.shape, dtype=start.dtype, generator=generator(0, "truth samplers step noise", step))

    if facts.stochastic:
        options = {"noise": noise, **options}
    if facts.gaussian:
        options = {"gaussian": gaussian_of(MEAN, STD**2), **options}
    final: Tensor = facts.load()(denoiser, start, sigmas, **options)
    return final


def gaussian_of(mean: float, variance: float) -> LatentGaussian:
    """That of one number."""
    gaussian = LatentGaussian((1, 1, 1), 1)
    gaussian.mean.fill_(mean)
    gaussian.basis.fill_(1.0)
    gaussian.eigenvalues.fill_(variance)
    return gaussian


def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean of N(μ, s²): the best denoiser there is."""
    level = broadcast_sigma(sigma, noisy) ** 2
    return (STD**2 * noisy + level * MEAN) / (STD**2 + level)


def denoise_mixture(noisy: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean of the mixture: that of each part, weighed by how likely it is."""
    variance = broadcast_sigma(sigma, noisy)[..., None] ** 2 + SPREAD**2
    away = noisy[..., None] - torch.tensor(CENTERS)
    likely = (torch.tensor(SHARES).log() - away**2 / (2 * variance)).softmax(-1)
    return (likely * (torch.tensor(CENTERS) + SPREAD**2 / variance * away)).sum(-1)


def share_below(noisy: Tensor, sigma: float) -> Tensor:
    """The share of the mixture with noise of that level that is below."""
    away = (noisy[..., None] - torch.tensor(CENTERS)) / math.sqrt(SPREAD**2 + sigma**2)
    return (torch.tensor(SHARES) * torch.special.ndtr(away)).sum(-1)


def gaussian_error(name: str, intervals: int) -> float:
    """The largest distance from the exact path at σ_min; the grid's final 0 is left out."""
    sigmas, start = grid_and_start(intervals)
    highest, lowest = sigmas[0].item(), sigmas[-1].item()
    exact = MEAN + (start - MEAN) * math.sqrt((STD**2 + lowest**2) / (STD**2 + highest**2))
    return float((sampled(name, denoise, start, sigmas) - exact).abs().max())


def mixture_error(name: str, intervals: int) -> float:
    """The same for the mixture; the exact end is found by bisection."""
    sigmas, start = grid_and_start(intervals)
    share, below, above = share_below(start, sigmas[0].item()), start.new_tensor(-9.0), start.new_tensor(9.0)
    for _ in range(60):
        middle = (below + above) / 2
        is_below = share_below(middle.expand_as(start), sigmas[-1].item()) < share
        below, above = torch.where(is_below, middle, below), torch.where(is_below, above, middle)
    mean = sum(share * center for share, center in zip(SHARES, CENTERS, strict=True))
    variance = sum(share * (center - mean) ** 2 for share, center in zip(SHARES, CENTERS, strict=True)) + SPREAD**2
    options = {"gaussian": gaussian_of(mean, variance)} if SAMPLERS[name].gaussian else {}
    return float((sampled(name, denoise_mixture, start, sigmas, **options) - above).abs().max())


def grid_and_start(intervals: int) -> tuple[Tensor, Tensor]:
    """Noise levels down to σ_min, and where the paths begin."""
    sigmas = karras_sigmas(intervals + 1, LOWEST, HIGHEST, 7.0)[:-1]
    return sigmas, sigmas[0].item() * torch.linspace(-2, 2, 9).view(-1, 1, 1, 1)


def variance_error(name: str, intervals: int, **options: Any) -> float:
    """The samples' variance at σ_min over the exact one, distance from 1.

    Row 0 starts at the standard deviation of the noisy data and gets no noise, row i + 1 gets that of draw i alone.
    """
    sigmas, _ = grid_and_start(intervals)
    start = torch.zeros(intervals + 5, 1, 1, 1)
    start[0] = math.sqrt(STD**2 + sigmas[0].item() ** 2)

    def noise(draw: int) -> Tensor:
        return torch.eye(len(start))[draw + 1].view_as(start)

    final = sampled(
        name,
        lambda noisy, sigma: denoise(noisy, sigma) - denoise(0 * noisy, sigma),
        start,
        sigmas,
        noise=noise,
        **options,
    )
    return abs(float((final**2).sum()) / (STD**2 + sigmas[-1].item() ** 2) - 1)


def least_fall(errors: list[float]) -> float:
    """The smallest factor from one error to the next."""
    return min(longer / shorter for longer, shorter in pairwise(errors))
