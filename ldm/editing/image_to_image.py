"""Real images as the start of new ones: img2img, and inpainting where a mask says what is to be drawn anew."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.batch import Condition
from ldm.diffusion.samplers import Denoise, StepNoise, step_noise
from ldm.diffusion.sampling import SamplingPlan, counted, denoise_latents
from ldm.editing.config import RESAMPLINGS
from ldm.editing.inpainting import Inpainting
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Images, Latents


@torch.no_grad()
def image_to_image(
    model: LatentDiffusion,
    images: Images,
    condition: Condition,
    plan: SamplingPlan,
    *,
    numbers: Sequence[int] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Images:
    """New images from given ones, which get noise of the plan's strength first (SDEdit, Meng et al. 2022).

    At strength 1 hardly anything is left of them; toward 0 the autoencoder's reconstruction is what comes back. Image
    i of the batch has the noise of number i, or of `numbers`.
    """
    numbers = range(len(images)) if numbers is None else numbers
    start = model.start(numbers, plan, model.encode(images))
    latents = model.denoise(start, condition, plan, numbers=numbers, on_step=counted(on_step))
    return model.decode(latents)[..., : images.shape[-2], : images.shape[-1]]


@torch.no_grad()
def inpaint(
    model: LatentDiffusion,
    images: Images,
    hidden: Tensor,
    condition: Condition,
    plan: SamplingPlan,
    *,
    resamplings: int = RESAMPLINGS,
    numbers: Sequence[int] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Images:
    """The images with their hidden part drawn anew to fit the rest, which stays as it is to the bit.

    Args:
        hidden: booleans, batch or 1 x 1 x height x width: what is to be drawn anew.
        plan: at strength 1 nothing of the hidden part is seen; below it the part is a start, as in img2img.
        resamplings: how often every few steps are gone (RePaint); more fit better, and take as much longer.
    """
    numbers = range(len(images)) if numbers is None else numbers
    edit = Inpainting.of(images, hidden, model.encode, plan.strength)
    start = model.start(numbers, plan, edit.start)

    def noise(step: int) -> Latents:
        return step_noise(start.shape[1:], numbers, plan.seed, step).to(start.device)

    def along(denoise: Denoise, noisy: Latents, sigmas: Tensor, noise: StepNoise) -> Latents:
        arguments = model.sampler_arguments(plan) | {"sigmas": sigmas}
        return denoise_latents(denoise, noisy, noise=noise, on_step=counted(on_step), **arguments)

    guided = model.guided(plan.guidance, condition.to(model.device))
    latents = edit.denoise(along, guided, start, plan.sigmas, resamplings=resamplings, noise=noise)
    return edit.finished(model.decode(latents))
