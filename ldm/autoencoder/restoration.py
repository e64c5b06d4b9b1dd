"""Restoration: reconstructions of corrupted images, corrupted as the objective corrupts them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.autoencoder.config import ReconstructionObjectiveConfig
from ldm.autoencoder.losses.distance import patch_statistics
from ldm.autoencoder.model import Autoencoder
from ldm.corruption import Mask
from ldm.randomness import StepRandom
from ldm.shapes import Images


@dataclass(frozen=True)
class Restoration:
    """Images as the encoder saw them, and their reconstructions; both of the images' own size.

    `keep_mask`, boolean and of that size, says which values of the latter were taken from the image.
    """

    corrupted: Images
    images: Images
    keep_mask: Tensor


@torch.no_grad()
def restore(
    autoencoder: Autoencoder, config: ReconstructionObjectiveConfig, images: Images, rng: StepRandom
) -> Restoration:
    """The images through the corruption of the objective and back.

    Where only what a mask hides was learned (emphasis 1), the rest is taken from the image, and where patches were
    asked for with mean 0 and variance 1, theirs are put back: what is shown is what the training was about.
    """
    none = torch.zeros_like(images, dtype=torch.bool)
    if config.corruption is None:
        return Restoration(images, as_images(autoencoder, config, autoencoder.reconstruct(images), images), none)
    corrupted = config.corruption(images, rng, name="input", patch=autoencoder.network.downsampling)
    height, width = images.shape[-2:]
    latents = autoencoder.encode(corrupted.values, corrupted.hidden).mode()
    again = autoencoder.decode(latents, corrupted.hidden)[..., :height, :width]
    again = as_images(autoencoder, config, again, images)
    keep_mask = none
    if config.emphasis == 1 and isinstance(config.corruption, Mask) and corrupted.elements is not None:
        keep_mask = ~corrupted.elements.expand_as(images)  # of a mask one sees where it is; of other noise one does not
    return Restoration(corrupted.values, torch.where(keep_mask, images, again), keep_mask)


def as_images(
    autoencoder: Autoencoder, config: ReconstructionObjectiveConfig, decoded: Tensor, images: Images
) -> Images:
    """What was decoded, with the mean and variance of the images' own patches where it was to have none."""
    if config.target != "normalized-patches":
        return decoded
    mean, std = patch_statistics(images, autoencoder.network.downsampling)
    return decoded * std + mean
