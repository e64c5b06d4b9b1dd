"""Samplers on Gaussian data N(μ, s²), whose best denoiser and whose whole path are known:

    x(σ) = μ + (x(σ_max) − μ) √((s² + σ²) / (s² + σ_max²))

A method of order p divides its error by 2^p when its steps are halved. That is measured at σ_min: a grid that ends at 0
has a last step that never gets shorter.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.noise import broadcast_sigma, karras_sigmas
from ldm.diffusion.samplers import Denoise, euler_ancestral
from ldm.randomness import generator
from ldm.verify.check import Check, at_least, at_most
from ldm.verify.training import reproducible

MEAN, STD = 0.7, 0.6
LEAST = {1: 1.8, 2: 3.5, 3: 6.5}  # by which the error falls, of each order
ERROR = {1: 0.1, 2: 2e-3, 3: 1e-4}  # after the most steps


def checks(*, small: bool = False) -> Iterator[Check]:
    """Every sampler of the table: its order, or its moments if it draws noise, its step counts, and its calls."""
    for name, facts in SAMPLERS.items():
        if facts.stochastic:
            yield from of_moments(name, small=small)
        else:
            yield from of_order(name, small=small)
        yield of_any_count(name, small=small)
        yield of_calls(name)
    yield from of_ancestral(small=small)


@reproducible("truth samplers order")
def of_order(name: str, *, small: bool) -> list[Check]:
    """Distances from the exact path after ever more steps."""
    counts = (32, 64, 128) if small else (32, 64, 128, 256)
    errors = [error(name, count) for count in counts]
    fell = min(longer / shorter for longer, shorter in pairwise(errors))
    order = SAMPLERS[name].order
    return [
        at_least(f"{name}, order {order}: error over that with twice the steps, least", fell, LEAST[order]),
        at_most(f"{name}: error after {counts[-1]} steps", errors[-1], ERROR[order]),
    ]


@reproducible("truth samplers count")
def of_any_count(name: str, *, small: bool) -> Check:
    """Where the data are one image, any number of steps ends on it."""
    image, most = torch.linspace(-1, 1, 12).view(1, 12), 20 if small else 100
    start = 40 * torch.randn(2, 12, generator=generator(0, "truth samplers start"))
    ends = [
        sampled(name, lambda noisy, sigma: image.expand_as(noisy), start, karras_sigmas(steps, 0.01, 40.0, 7.0))
        for steps in range(1, most + 1)
    ]
    off = max(float((end - image).abs().max()) for end in ends)
    return at_most(f"{name}, 1 to {most} steps: distance to the only image, largest", off, 1e-12)


@reproducible("truth samplers calls")
def of_calls(name: str) -> Check:
    """As many calls of the denoiser per step as the table says; the last step, to 0, needs one alone."""
    levels: list[float] = []

    def counting(noisy: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma[0]))
        return denoise(noisy, sigma)

    sampled(name, counting, torch.ones(1, 1), karras_sigmas(10, 0.02, 20.0, 7.0))
    calls = SAMPLERS[name].calls
    return at_most(
        f"{name}: calls of the denoiser in 10 steps less {calls} a step", abs(len(levels) - 9 * calls - 1), 0
    )


@reproducible("truth samplers moments")
def of_moments(name: str, *, small: bool) -> list[Check]:
    """A stochastic sampler has no path, but its samples have mean and variance of the data, up to its finite steps."""
    count, steps = (5000, 100) if small else (20_000, 200)
    start = MEAN + math.sqrt(STD**2 + 20.0**2) * torch.randn(count, 1, generator=generator(0, "truth samplers start"))
    final = sampled(name, denoise, start, karras_sigmas(steps, 0.01, 20.0, 7.0))
    off = (final.mean() - MEAN).abs() / (STD / math.sqrt(count))
    return [
        at_most(f"{name}: mean of samples, standard errors off", off, 4),
        at_most(
            f"{name}: variance of samples over the data's, distance from 1",
            (final.var() / STD**2 - 1).abs(),
            10 / steps + 4 * math.sqrt(2 / count),
        ),
    ]


def sampled(name: str, denoiser: Denoise, start: Tensor, sigmas: Tensor) -> Tensor:
    """The result of a sampler of the table, with noise of a fixed seed if it is stochastic."""
    facts = SAMPLERS[name]

    def noise(step: int) -> Tensor:
        return torch.randn(start.shape, generator=generator(0, "truth samplers step noise", step))

    final: Tensor = facts.load()(denoiser, start, sigmas, **({"noise": noise} if facts.stochastic else {}))
    return final


@reproducible("truth samplers ancestral")
def of_ancestral(*, small: bool) -> list[Check]:
    """The stochastic sampler has no path, but its samples have the mean and the variance of the data.

    A step from σ to σ' takes a variance v to (k + (1 - k) s² / (s² + σ²))² v + σ'² (1 - k), where k = (σ'/σ)². With
    finite steps that ends a little below s².
    """
    count, steps = (5000, 100) if small else (20_000, 200)

    def noise(step: int) -> Tensor:
        return torch.randn(count, 1, generator=generator(0, "truth samplers noise", step))

    sigmas = karras_sigmas(steps, 0.01, 20.0, 7.0)
    final = euler_ancestral(denoise, MEAN + math.sqrt(STD**2 + 20.0**2) * noise(-1), sigmas, noise=noise)
    expected = STD**2 + 20.0**2
    for sigma, lower in pairwise(sigmas.tolist()):
        kept = (lower / sigma) ** 2
        slope = kept + (1 - kept) * STD**2 / (STD**2 + sigma**2)
        expected = slope**2 * expected + lower**2 * (1 - kept)
    off = (final.mean() - MEAN).abs() / (STD / math.sqrt(count))
    spread_off = (final.var() / expected - 1).abs() / math.sqrt(2 / count)
    return [
        at_most("euler_ancestral: mean, standard errors off", off, 4),
        at_most("euler_ancestral: variance against that of its steps, standard errors off", spread_off, 4),
        at_most(
            "euler_ancestral: that variance over the data's, distance from 1", abs(expected / STD**2 - 1), 10 / steps
        ),
    ]


def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
    """The posterior mean: the best denoiser there is."""
    level = broadcast_sigma(sigma, noisy) ** 2
    return (STD**2 * noisy + level * MEAN) / (STD**2 + level)


def error(name: str, intervals: int) -> float:
    """The largest distance from the exact path at σ_min; the grid's final 0 is left out."""
    sigmas = karras_sigmas(intervals + 1, 0.02, 20.0, 7.0)[:-1]
    start = 20.0 * torch.linspace(-2, 2, 9)[:, None]
    highest, lowest = sigmas[0].item(), sigmas[-1].item()
    exact = MEAN + (start - MEAN) * math.sqrt((STD**2 + lowest**2) / (STD**2 + highest**2))
    return float((sampled(name, denoise, start, sigmas) - exact).abs().max())
