"""The denoiser as a dequantizer: a latent diffusion model moves latents within the cells of their symbols."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.compression.codec import Codec
from ldm.diffusion.config import SAMPLERS
from ldm.errors import CheckpointError, ConfigError
from ldm.pipeline import LatentDiffusion
from ldm.randomness import generator
from ldm.shapes import Latents

LARGEST_DIFFERENCE = 0.02  # of the images that two copies of one autoencoder decode


@dataclass(frozen=True)
class DenoisingRefinement:
    """clip(D(z; step / √12), z - step / 2, z + step / 2) for centers z of cells: a `Refinement` of `Codec.decompress`.

    Rounding to a step adds an error of that standard deviation, nearly uniform in the cell, and the true value lies in
    it. Where channels have different steps, the noise level is that of their mean square. The two models may
    standardize the latents differently; the network must be the same.

    One step goes to the denoiser's guess, the mean of what the latent may be. Several are Euler steps of a sampler down
    to no noise: they go to one of the latents that it may be.
    """

    codec: Autoencoder
    model: LatentDiffusion
    steps: int = 1

    @classmethod
    def of(cls, codec: Codec, model: LatentDiffusion, steps: int = 1) -> "DenoisingRefinement":
        """That of a codec and a model of its latents.

        CheckpointError if the model is of another autoencoder, or was tuned for few steps and is no denoiser.
        """
        if SAMPLERS[model.config.sampling.sampler].consistency:
            raise CheckpointError(
                "the diffusion model was tuned for few steps, and is no denoiser: give the one before"
            )
        mine, other = codec.autoencoder, model.autoencoder
        if mine.latent_channels == other.latent_channels and mine.network.downsampling == other.network.downsampling:
            shape = (1, *model.config.latent_shape)
            raw = torch.randn(shape, generator=generator(0, "same autoencoder")) * mine.latent_std.cpu()
            raw = raw + mine.latent_mean.cpu()
            with torch.no_grad():
                images = [decode_raw(each, raw) for each in (mine, other)]
            if images[0].shape == images[1].shape and (images[0] - images[1]).abs().max() < LARGEST_DIFFERENCE:
                return cls(mine, model, steps)
        raise CheckpointError("the diffusion model is of another autoencoder than the codec")

    @torch.no_grad()
    def __call__(self, latents: Latents, cells: Tensor) -> Latents:
        """The latents, each element within its cell; ConfigError for a size that the denoiser does not take."""
        if tuple(latents.shape[1:]) != self.model.config.latent_shape:
            found, taken = (" x ".join(map(str, each)) for each in (latents.shape[1:], self.model.config.latent_shape))
            raise ConfigError(f"the denoiser takes latents of {taken} alone, and the file has {found}")
        theirs = self.model.autoencoder
        mean, std = (each.to(latents) for each in (self.codec.latent_mean, self.codec.latent_std))
        their_mean, their_std = (each.to(latents) for each in (theirs.latent_mean, theirs.latent_std))
        noisy, scale = (latents * std + mean - their_mean) / their_std, std / their_std
        sigma = (cells * scale).square().mean((1, 2, 3)).sqrt() / math.sqrt(12)
        device = next(self.model.denoiser.parameters()).device
        x, sigma = noisy.to(device), sigma.to(device)
        for left in range(self.steps, 0, -1):
            denoised = self.model.denoiser(x, sigma * left / self.steps)
            x = denoised + (left - 1) / left * (x - denoised)
        moved = (x.to(latents) * their_std + their_mean - mean) / std
        return torch.minimum(torch.maximum(moved, latents - cells / 2), latents + cells / 2)


def decode_raw(autoencoder: Autoencoder, raw: Tensor) -> Tensor:
    """Images of latents that are not standardized, on the CPU."""
    standardized = raw.to(autoencoder.latent_mean) - autoencoder.latent_mean
    return autoencoder.decode(standardized / autoencoder.latent_std).float().cpu()
