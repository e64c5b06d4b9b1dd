"""The request of a pipeline call: the sampler, its noise levels, and the images that it starts from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.samplers import Denoise, OnStep, StepNoise
from ldm.diffusion.sampling import denoise_latents, noisy_start
from ldm.editing.config import STRENGTH
from ldm.editing.inpainting import Inpainting
from ldm.errors import RequestError
from ldm.export.pipeline.image_input import hidden_given
from ldm.shapes import Images, Latents

SCHEDULER = "scheduler"  # the name, among the samplers, of whatever pipe.scheduler does
LevelsReporter = Callable[[Tensor], OnStep]  # noise levels -> what is done after each step along them


@dataclass(frozen=True)
class PipelineRequest:
    """A sampler, the noise levels that it goes along, and what it starts from beside noise."""

    sampler: str
    options: Mapping[str, float]
    sigmas: Tensor
    latents: Latents | None = None  # of the images that it starts from
    inpainting: Inpainting | None = None  # of these images and a mask
    resamplings: int = 1

    def for_images(self, count: int, each: int) -> "PipelineRequest":
        """The same for so many images, where `each` of the requests is drawn several times, one after the other.

        Images to start from are one for all, one for each request, or fewer and taken in turn; or one for each image.
        RequestError for another number of them.
        """
        if self.latents is None:
            return self
        given, numbers = len(self.latents), torch.arange(count)
        if given != count:
            if count // each % given:
                raise RequestError(
                    "image", f"has {given} images for {count // each}: give 1, a divisor of that, or one for each"
                )
            numbers = numbers // each % given
        return self.of(numbers)

    def images_for(self, conditions: int) -> int:
        """How many images so many labels or prompts ask for, given those to start from, or RequestError."""
        started = 0 if self.latents is None else len(self.latents)
        if 1 < conditions < started:
            raise RequestError("image", f"has {started} images for {conditions} labels or prompts: as many, or 1")
        return max(conditions, started)

    def of(self, numbers: Tensor) -> "PipelineRequest":
        """The same for some of the images."""
        if self.latents is None:
            return self
        edit = None if self.inpainting is None else self.inpainting[numbers]
        return replace(self, latents=self.latents[numbers.to(self.latents.device)], inpainting=edit)

    def drawn(
        self, denoise: Denoise, unit_noise: Latents, noise: StepNoise, gaussian: Any, report: LevelsReporter
    ) -> Latents:
        """The latents that a sampler of ours makes of unit noise."""

        def along(denoise: Denoise, noisy: Latents, sigmas: Tensor, noise: StepNoise) -> Latents:
            given = {"options": self.options, "gaussian": gaussian, "on_step": report(sigmas)}
            return denoise_latents(denoise, noisy, sigmas, sampler=self.sampler, noise=noise, **given)

        highest = self.sigmas[0].item()
        if self.latents is None:
            start = noisy_start(unit_noise, highest, sampler=self.sampler, gaussian=gaussian)
        else:
            start = self.latents + highest * unit_noise
        if self.inpainting is None:
            return along(denoise, start, self.sigmas, noise)
        times = self.resamplings
        return self.inpainting.denoise(along, denoise, start, self.sigmas, resamplings=times, noise=noise)


def strength_of(strength: float | None, image: Any, mask_image: Any) -> float:
    """The strength that is asked for, or else its default; RequestError where there is no image to have one."""
    if image is None and (strength is not None or mask_image is not None):
        name = "strength" if mask_image is None else "mask_image"
        raise RequestError(name, "is of an image, and there is none")
    if strength is not None:
        return strength
    return 1.0 if image is None or mask_image is not None else STRENGTH


def started_from(
    request: PipelineRequest,
    images: Images,
    mask_image: Any,
    encode: Callable[[Images], Latents],
    *,
    strength: float,
    resamplings: int,
) -> PipelineRequest:
    """The same request, of images and perhaps of masks."""
    if request.sampler == SCHEDULER:
        raise RequestError("image", "needs a sampler of ours: choose one, or leave pipe.scheduler as it was")
    if mask_image is None:
        return replace(request, latents=encode(images))
    hidden, count = hidden_given(mask_image, images.shape[1:]), len(images)
    if count not in (1, len(hidden)) and len(hidden) != 1:
        raise RequestError("mask_image", f"has {len(hidden)} masks for {count} images: give 1 or {count}")
    edit = Inpainting.of(torch.cat([images] * max(len(hidden) // count, 1)), hidden, encode, strength)
    return replace(request, latents=edit.start, inpainting=edit, resamplings=resamplings)
