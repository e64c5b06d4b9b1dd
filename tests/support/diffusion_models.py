"""Untrained diffusion models in miniature, with weights that are not at their start, of every kind of autoencoder."""

from dataclasses import replace

import torch

from ldm.autoencoder.config import (
    AutoencoderConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    ResidualNetworkConfig,
    TinyNetworkConfig,
)
from ldm.autoencoder.model import Autoencoder, create, create_pixels
from ldm.batch import ClassAttribute, ConditionSchema
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, UNetConfig
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.pipeline import LatentDiffusion

IMAGE = (3, 16, 16)
DENOISER = DenoiserConfig(UNetConfig(widths=(8, 16), blocks=1, attention=(1,), head_channels=8))


def kl_autoencoder() -> Autoencoder:
    """A stock AutoencoderKL at f2."""
    return create(
        AutoencoderConfig(KLNetworkConfig(widths=(8, 8), norm_groups=4), GaussianConfig(channels=2)), image=IMAGE
    )


def tiny_autoencoder() -> Autoencoder:
    """An autoencoder at f2 that no class of diffusers can hold."""
    config = AutoencoderConfig(TinyNetworkConfig(width=8, levels=1, blocks=1), IdentityConfig(channels=2))
    return create(config, image=IMAGE)


def residual_autoencoder() -> Autoencoder:
    """Another, at f2, whose noise is set."""
    network = ResidualNetworkConfig(downsampling=2, width=8, blocks=1)
    return create(AutoencoderConfig(network, GaussianConfig(channels=2, noise=0.05)), image=IMAGE)


AUTOENCODERS = {
    "kl": kl_autoencoder,
    "tiny": tiny_autoencoder,
    "residual": residual_autoencoder,
    "pixels": lambda: create_pixels(IMAGE),
}


def diffusion_model(
    kind: str, *, classes: tuple[str, ...] = ("disc", "square"), parts: DenoiserConfig = DENOISER
) -> LatentDiffusion:
    """A model of one kind of autoencoder, with statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = AUTOENCODERS[kind]()
        channels = autoencoder.latent_channels
        autoencoder.standardize(torch.linspace(-0.2, 0.3, channels), torch.linspace(0.5, 2, channels))
        schema = ConditionSchema((ClassAttribute("label", classes),) if classes else ())
        shape = autoencoder.latent_shape(IMAGE[1:])
        config = DiffusionModelConfig(shape, schema, parts, replace(SamplingConfig(), sigma_max=20.0))
        denoiser = create_denoiser(config)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return LatentDiffusion(autoencoder, denoiser, config)
