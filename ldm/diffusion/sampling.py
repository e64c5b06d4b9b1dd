"""Sampling: noisy latents to start from, and the sampler that denoises them along a grid of noise levels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict

from torch import Tensor

from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.noise import consistency_sigmas, karras_sigmas
from ldm.diffusion.samplers import Denoise, OnStep, StepNoise
from ldm.diffusion.samplers.options import NoiseGrid, check_sampler
from ldm.errors import DivergedError, RequestError
from ldm.shapes import Latents

OF_GRID = ("gaussian_start", "second_sigma")  # options that the noise levels depend on, and the sampler itself does not


@dataclass(frozen=True)
class SamplingPlan:
    """How latents are drawn from a model, as `LatentDiffusion.plan` has checked it."""

    sampler: str
    options: Mapping[str, float]  # of the sampler
    guidance: Guidance
    seed: int
    sigmas: Tensor  # the noise levels, decreasing, and 0 at the end
    shape: tuple[int, int, int]  # channels, height, width of a latent
    strength: float = 1.0  # of img2img


class PlanArguments(TypedDict, total=False):
    """The arguments of `LatentDiffusion.plan`, which `sample` passes on."""

    steps: int | None
    sampler: str | None
    sampler_options: Mapping[str, float] | None
    guidance: float | Mapping[str, float] | Guidance | None
    seed: int
    strength: float
    size: tuple[int, int] | None


def noise_levels(grid: NoiseGrid, steps: int, options: Mapping[str, float]) -> Tensor:
    """The grid of noise levels of a model, from where a sampler begins."""
    if SAMPLERS[grid.sampler].consistency:
        return consistency_sigmas(steps, grid.sigma_min, grid.sigma_max, grid.rho, options.get("second_sigma"))
    return karras_sigmas(steps, grid.sigma_min, options.get("gaussian_start", grid.sigma_max), grid.rho)


def sample_latents(
    denoise: Denoise,
    unit_noise: Latents,
    sigmas: Tensor,
    *,
    sampler: str,
    noise: StepNoise,
    options: Mapping[str, float] | None = None,
    gaussian: LatentGaussian | None = None,
    on_step: OnStep | None = None,
) -> Latents:
    """The latents that a sampler of the table makes of unit Gaussian noise along a grid of noise levels.

    `noise` is for the samplers that draw some in every step, and the Gaussian of the latents for those that know it:
    they start at exactly its noisy latents.
    """
    start = noisy_start(unit_noise, sigmas[0].item(), sampler=sampler, gaussian=gaussian)
    return denoise_latents(
        denoise, start, sigmas, sampler=sampler, noise=noise, options=options, gaussian=gaussian, on_step=on_step
    )


def noisy_start(unit_noise: Latents, sigma: float, *, sampler: str, gaussian: LatentGaussian | None = None) -> Latents:
    """The noisy latents at the highest level that a sampler starts from without an image."""
    if SAMPLERS[sampler].gaussian and gaussian is not None:
        return gaussian.noised(unit_noise, sigma)
    return unit_noise * sigma


def denoise_latents(
    denoise: Denoise,
    noisy: Latents,
    sigmas: Tensor,
    *,
    sampler: str,
    noise: StepNoise,
    options: Mapping[str, float] | None = None,
    gaussian: LatentGaussian | None = None,
    on_step: OnStep | None = None,
) -> Latents:
    """The latents that a sampler makes of noisy ones, clean + σ · noise at the first level of the grid."""
    facts = SAMPLERS[sampler]
    more: dict[str, Any] = {name: value for name, value in (options or {}).items() if name not in OF_GRID}
    if facts.stochastic:
        more["noise"] = noise
    if facts.gaussian and gaussian is not None:
        more["gaussian"] = gaussian
    latents: Latents = facts.load()(denoise, noisy, sigmas, on_step=on_step, **more)
    return finite(latents)


def counted(on_step: Callable[[int], object] | None) -> OnStep | None:
    """A function that is called with 1 after each step, as one that samplers take."""
    if on_step is None:
        return None

    def step_done(step: int, noisy: Latents) -> None:
        on_step(1)

    return step_done


def finite(samples: Tensor) -> Tensor:
    """The same; DivergedError if they hold NaN or infinity, which no picture can show."""
    if not samples.isfinite().all():
        raise DivergedError(
            "the samples are not finite numbers: take a smaller guidance or a wider precision (bfloat16, float32), or"
            " the model itself is broken"
        )
    return samples


def check_request(num: int, steps: int, sampler: str, batch_size: int = 1, seed: int = 0) -> None:
    """Raise RequestError for a request that cannot be met."""
    for name, value in (("num", num), ("steps", steps), ("batch_size", batch_size), ("seed", seed)):
        if not isinstance(value, Integral):
            raise RequestError(name, f"{value!r} is not an integer")
        if value < 1 and name != "seed":
            raise RequestError(name, f"{value} must be at least 1")
    check_sampler(sampler)
