"""The autoencoder: images to a posterior over standardized latents, and back."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder import stock
from ldm.autoencoder.bottleneck import BOTTLENECKS, Gaussian, Posterior
from ldm.autoencoder.network import NETWORKS, KLNetwork, StockNetwork
from ldm.autoencoder.settings import Autoencoder as AutoencoderSettings
from ldm.autoencoder.settings import Gaussian as GaussianSettings
from ldm.errors import ConfigError
from ldm.shapes import Images, Latents, full_precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class Autoencoder(nn.Module):
    """Encoder, bottleneck, decoder, and the statistics that standardize the latents.

    `latent_mean` and `latent_std` (one number per channel) are 0 and 1 until `standardize` is told what they are over
    the training set; from then on `encode` gives, and `decode` takes, latents of zero mean and unit variance.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self, network: KLNetwork | StockNetwork, bottleneck: Callable[[Tensor], Posterior], latent_channels: int
    ):
        super().__init__()
        self.network = network
        self.bottleneck = bottleneck
        self.latent_channels = latent_channels
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """The autoencoder in a finished run, in a diffusers AutoencoderKL folder, or under a hub id; on the CPU.

        Raises CheckpointError if there is none. A stock autoencoder's scaling and shift become the statistics.
        """
        exported = Path(source) / "vae"
        return cls.of_stock(stock.read(exported if exported.is_dir() else source))

    @classmethod
    def of_stock(cls, kl: "AutoencoderKL") -> Self:
        """Any AutoencoderKL of diffusers as an autoencoder of ours, around the same weights."""
        channels = kl.config["latent_channels"]
        autoencoder = cls(StockNetwork(kl), Gaussian(GaussianSettings(channels=channels)), channels)
        shift, scale = kl.config["shift_factor"] or 0.0, kl.config["scaling_factor"]
        autoencoder.standardize(torch.full((channels,), shift), torch.full((channels,), 1 / scale))
        return autoencoder.to(kl.device).eval()

    def save(self, folder: Path) -> None:
        """Write a stock AutoencoderKL folder with the statistics folded in; our `load` and diffusers' both read it."""
        stock.write(self.network, self.latent_mean, self.latent_std, folder)

    def encode(self, images: Images) -> Posterior:
        """The posterior of each image; an image whose sides the factor does not divide is first padded."""
        posterior = self.bottleneck(self.network.encode(padded(images, self.network.factor)))
        return posterior.standardized(self.latent_mean, self.latent_std)

    def decode(self, latents: Latents) -> Images:
        """The image of each latent, in [-1, 1] as far as the decoder learned it; not clamped."""
        return full_precision(self.network.decode(latents * self.latent_std + self.latent_mean))

    def reconstruct(self, images: Images) -> Images:
        """Each image through the mode of its posterior and back, at its own size."""
        height, width = images.shape[-2:]
        return self.decode(self.encode(images).mode())[..., :height, :width]

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Take `mean` and `std` (one per channel) of latents as they come out now, and make them 0 and 1."""
        mean, std = mean.to(self.latent_mean).view(-1, 1, 1), std.to(self.latent_std).view(-1, 1, 1)
        self.latent_mean += self.latent_std * mean
        self.latent_std *= std

    def latent_shape(self, sides: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, height, width of the latent of an image of this height and width."""
        height, width = (-(-side // self.network.factor) for side in sides)
        return self.latent_channels, height, width


def padded(images: Images, factor: int) -> Images:
    """Images extended to the right and below until `factor` divides both sides: reflected, or repeated when tiny."""
    down, right = -images.shape[-2] % factor, -images.shape[-1] % factor
    if not down and not right:
        return images
    reflects = down < images.shape[-2] and right < images.shape[-1]
    return F.pad(images, (0, right, 0, down), mode="reflect" if reflects else "replicate")


def spelled(sides: tuple[int, ...]) -> str:
    """Height and width as a person writes data.size: one number for a square."""
    return str(sides[0]) if len(set(sides)) == 1 else str(list(sides))


def build(settings: AutoencoderSettings, *, image_channels: int, sides: tuple[int, int]) -> Autoencoder:
    """An untrained autoencoder for training images of this height and width."""
    network_settings, bottleneck_settings = settings.network, settings.bottleneck
    widths, groups = network_settings.widths, network_settings.norm_groups
    factor = 2 ** (len(widths) - 1)
    if any(side % factor for side in sides):
        below, above = (tuple(toward(side / factor) * factor for side in sides) for toward in (math.floor, math.ceil))
        near = " or ".join(spelled(nearest) for nearest in (below, above) if all(nearest))
        raise ConfigError(
            f"data.size {spelled(sides)} is not divisible by {factor}, the downsampling of autoencoder.network.widths"
            f" with {len(widths)} levels: use {near}"
        )
    for width in widths:
        if width % groups:
            raise ConfigError(
                f"autoencoder.network.norm_groups {groups} does not divide {width}, one of autoencoder.network.widths"
            )
    bottleneck = BOTTLENECKS[type(bottleneck_settings)](bottleneck_settings)
    network = NETWORKS[type(network_settings)](
        network_settings, image_channels=image_channels, latent_channels=bottleneck.channels
    )
    return Autoencoder(network, bottleneck, bottleneck.channels)
