"""Ways between two images: between seeds, between conditions, and between real images by way of their noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.batch import Condition
from ldm.diffusion.config import SAMPLERS
from ldm.diffusion.editing import between_conditions, inverted, spherical
from ldm.diffusion.samplers import step_noise
from ldm.diffusion.sampling import SamplingPlan, counted, denoise_latents
from ldm.errors import RequestError
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Images, Latents


@dataclass(frozen=True)
class PathEnd:
    """Images at one end of a way: the noisy latents that they come from, and their condition."""

    start: Latents  # at the first level of a plan
    condition: Condition
    numbers: tuple[int, ...]  # of the noise that a stochastic sampler draws on the way
    missed: Latents | float = 0.0  # what is between the latents of an image and those that its start leads to


@torch.no_grad()
def drawn_end(model: LatentDiffusion, numbers: tuple[int, ...], condition: Condition, plan: SamplingPlan) -> PathEnd:
    """The samples with these numbers."""
    return PathEnd(model.start(numbers, plan), condition.to(model.device), numbers)


@torch.no_grad()
def image_end(
    model: LatentDiffusion,
    images: Images,
    condition: Condition,
    plan: SamplingPlan,
    *,
    on_step: Callable[[int], object] | None = None,
) -> PathEnd:
    """Real images, by inversion of the probability-flow ODE; RequestError for a sampler that does not solve one.

    What the solver misses on its way there and back is remembered, so that the way ends at their reconstructions.
    """
    if SAMPLERS[plan.sampler].consistency:
        way = "of a model tuned for few steps, knows no way back to noise: use the run that it was tuned from"
        raise RequestError("sampler", f"{plan.sampler}, {way}")
    if SAMPLERS[plan.sampler].stochastic:
        raise RequestError("sampler", f"{plan.sampler} draws noise on its way, which has no inverse: take heun")
    latents, condition = model.encode(images), condition.to(model.device)
    start = inverted(model.guided(plan.guidance, condition), latents, plan.sigmas)
    returned = model.denoise(start, condition, plan, on_step=counted(on_step))
    return PathEnd(start, condition, (0,) * len(images), latents - returned)


@torch.no_grad()
def interpolate(
    model: LatentDiffusion,
    one: PathEnd,
    other: PathEnd,
    shares: Tensor,
    plan: SamplingPlan,
    *,
    on_step: Callable[[int], object] | None = None,
) -> Images:
    """The images at some places between two ends, 0 being `one` and 1 `other`, which are met exactly.

    The noise goes along the arc between those of the ends, and the denoiser along the line between those of their
    conditions. Each end is one image, or as many as there are shares.
    """
    shares = shares.float().cpu()
    count = len(shares)
    start = spherical(all_of(one.start, count), all_of(other.start, count), shares)
    denoise = model.guided(plan.guidance, expanded(one.condition, count))
    if not same_conditions(one.condition, other.condition):
        guided_other = model.guided(plan.guidance, expanded(other.condition, count))
        denoise = between_conditions(denoise, guided_other, shares)

    def noise(step: int) -> Latents:
        drawn = [step_noise(start.shape[1:], each.numbers, plan.seed, step) for each in (one, other)]
        return spherical(all_of(drawn[0], count), all_of(drawn[1], count), shares).to(start.device)

    latents = denoise_latents(denoise, start, noise=noise, on_step=counted(on_step), **model.sampler_arguments(plan))
    share = shares.to(latents).view(-1, 1, 1, 1)
    return model.decode(latents + (1 - share) * one.missed + share * other.missed)


def all_of(latents: Latents, count: int) -> Latents:
    """One for each of several images, of one for all or of as many."""
    return latents.expand(count, -1, -1, -1)


def expanded(condition: Condition, count: int) -> Condition:
    """The condition of one image for several, or those of several as they are."""
    return condition.repeated(torch.arange(count))


def same_conditions(one: Condition, other: Condition) -> bool:
    """Whether both ask for the same, or both leave the same out, for which NaN may stand."""
    pairs = [(value, other.values[name]) for name, value in one.values.items()]
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in pairs)


@torch.no_grad()
def denoising_path(
    model: LatentDiffusion,
    number: int,
    condition: Condition,
    plan: SamplingPlan,
    *,
    on_step: Callable[[int], object] | None = None,
) -> Images:
    """What the denoiser takes the image with a number for, after each step of the way from noise to it."""
    guided, answers, reached = model.guided(plan.guidance, condition.to(model.device)), list[Latents](), list[Latents]()

    def denoise(noisy: Latents, sigma: Tensor) -> Latents:
        answers[:] = [guided(noisy, sigma)]
        return answers[0]

    def step_done(step: int, noisy: Latents) -> None:
        reached.append(answers[0] if step < len(plan.sigmas) - 1 else noisy)
        if on_step is not None:
            on_step(1)

    start = model.start([number], plan)

    def noise(step: int) -> Latents:
        return step_noise(plan.shape, [number], plan.seed, step).to(start.device)

    denoise_latents(denoise, start, noise=noise, on_step=step_done, **model.sampler_arguments(plan))
    return torch.cat([model.decode(latents) for latents in reached])
