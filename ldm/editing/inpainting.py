"""Inpainting: images of which a part is drawn anew, and the rest is kept to the bit."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ldm.diffusion.editing import keeping_known, resample
from ldm.diffusion.samplers import Denoise, StepNoise
from ldm.editing.masks import check_hidden, hidden_latents, put_into, without_hidden
from ldm.errors import RequestError
from ldm.shapes import Images, Latents

AlongLevels = Callable[[Denoise, Latents, Tensor, StepNoise], Latents]  # their levels, and the noise of steps


@dataclass(frozen=True)
class Inpainting:
    """A batch of images, what of it is hidden, and its latents.

    A latent is taken for hidden where any of its pixels is. The others are encoded from the images without their hidden
    part, and in the end the pixels that are not hidden are those of the images themselves.
    """

    images: Images
    hidden: Tensor  # booleans, batch x 1 x height x width
    start: Latents  # to which the first noise is added
    known: Latents
    hidden_latents: Tensor

    @classmethod
    def of(
        cls, images: Images, hidden: Tensor, encode: Callable[[Images], Latents], strength: float = 1.0
    ) -> "Inpainting":
        """Images and a mask, one for all or one for each; at strength 1 nothing of the hidden part is seen.

        Below it the hidden part is a start, as in img2img. RequestError for a mask that does not fit, or hides nothing.
        """
        check_hidden(hidden, images)
        hidden = hidden.to(images.device).expand(len(images), -1, -1, -1)
        known = encode(without_hidden(images, hidden))
        height, width = (-(-pixels // side) for pixels, side in zip(images.shape[-2:], known.shape[-2:], strict=True))
        start = known if strength == 1 else encode(images)
        return cls(images, hidden, start, known, hidden_latents(hidden, (height, width)).to(known.device))

    def __getitem__(self, rows: Tensor) -> "Inpainting":
        """Some of the images."""
        parts = (self.images, self.hidden, self.start, self.known, self.hidden_latents)
        return Inpainting(*(part[rows.to(part.device)] for part in parts))

    def denoise(
        self, along: AlongLevels, guided: Denoise, noisy: Latents, sigmas: Tensor, *, resamplings: int, noise: StepNoise
    ) -> Latents:
        """The latents of the images; every few steps are gone `resamplings` times (RePaint)."""
        if resamplings < 1:
            raise RequestError("resamplings", f"{resamplings} must be at least 1")
        denoise = keeping_known(guided, self.known, self.hidden_latents)

        def along_levels(noisy: Latents, sigmas: Tensor, noise: StepNoise) -> Latents:
            return along(denoise, noisy, sigmas, noise)

        return resample(along_levels, noisy, sigmas, times=resamplings, noise=noise)

    def finished(self, drawn: Images) -> Images:
        """The images with what was drawn in their hidden part."""
        drawn = drawn[..., : self.images.shape[-2], : self.images.shape[-1]].to(self.images)
        return put_into(self.images, drawn, self.hidden)
