"""Standardized latents by the `vae` of a pipeline, whatever scaling and shift its config states."""

from typing import Any

import torch
from torch import Tensor

from ldm.autoencoder.formats.diffusers import statistics
from ldm.shapes import Images, Latents


def image_shape_of(vae: Any, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Channels, height and width of the images of latents of a shape."""
    factor = vae.config.get("downsampling") or 2 ** (len(vae.config["block_out_channels"]) - 1)
    high, wide = (factor, factor) if isinstance(factor, int) else factor
    return vae.config["in_channels"], latent_shape[1] * high, latent_shape[2] * wide


def encoded_by(vae: Any, images: Images, device: torch.device) -> Latents:
    """The modes of the posteriors of images."""
    latents: Latents = vae.encode(images.to(device, vae.dtype)).latent_dist.mode().float()
    mean, std = statistics_of(vae, latents)
    return (latents - mean) / std


def decoded_by(vae: Any, latents: Latents) -> Images:
    """The images of latents, in [-1, 1]."""
    mean, std = statistics_of(vae, latents)
    images: Images = vae.decode((latents * std + mean).to(vae.dtype)).sample
    return images.float().clamp(-1, 1)


def statistics_of(vae: Any, latents: Latents) -> tuple[Tensor | float, Tensor | float]:
    """Mean and standard deviation of the latents that a `vae` itself takes and gives."""
    if "scaling_factor" not in vae.config:
        return 0.0, 1.0
    mean, std = (each.to(latents).view(-1, 1, 1) for each in statistics(vae.config))
    return mean, std
