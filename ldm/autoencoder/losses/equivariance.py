"""Equivariance regularization (EQ-VAE): a scaled and rotated latent must decode to the scaled and rotated image."""

import torch
from torch.nn import functional as F

from ldm.autoencoder.losses.config import EquivarianceConfig
from ldm.randomness import StepRandom
from ldm.shapes import Images


def transform_together(
    images: Images, latents: torch.Tensor, config: EquivarianceConfig, rng: StepRandom
) -> tuple[Images, torch.Tensor]:
    """In a fraction of the steps both, scaled down and rotated alike; else both as they are.

    The decoder is then asked for the transformed image, given the transformed latent (EQ-VAE, Kouzelis et al. 2025).
    One transformation is drawn per step for the whole global batch, as the images of a batch have one size: a scale
    from `min_scale` to 1, rounded to whole latent positions, and 0 to 3 quarter turns.
    """
    happens, scale, turn = torch.rand(3, generator=rng.generator("equivariance")).tolist()
    if happens >= config.probability:
        return images, latents
    factor = [image // latent for image, latent in zip(images.shape[-2:], latents.shape[-2:], strict=True)]
    scale = config.min_scale + (1 - config.min_scale) * scale
    sides = [max(round(scale * side), 1) for side in latents.shape[-2:]]
    if sides != list(latents.shape[-2:]):
        latents = F.interpolate(latents, sides, mode="bilinear", antialias=True)
        sizes = [side * step for side, step in zip(sides, factor, strict=True)]
        images = F.interpolate(images, sizes, mode="bilinear", antialias=True)
    quarters = int(4 * turn) if config.rotate90 else 0
    return torch.rot90(images, quarters, (-2, -1)), torch.rot90(latents, quarters, (-2, -1))
