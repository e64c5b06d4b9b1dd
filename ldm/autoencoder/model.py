"""The autoencoder: images to a posterior over standardized latents, and back."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.bottleneck import Bottleneck, Code, Posterior
from ldm.autoencoder.config import (
    BOTTLENECKS,
    NETWORKS,
    AutoencoderConfig,
    IdentityConfig,
    PixelNetworkConfig,
)
from ldm.autoencoder.network import AutoencoderNetwork
from ldm.config.parts import Part
from ldm.errors import ConfigError
from ldm.randomness import StepRandom
from ldm.shapes import Images, Latents, format_size, full_precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


MOST_IMAGES, MOST_VALUES = 1024, 2**26  # of the training images that something starts from, and of their values

# Reading and writing files is built upon this module, so it is named here and not imported.
SAVING = {name: Part(f"ldm.autoencoder.saving:{name}") for name in ("load", "save", "from_diffusers")}


class Autoencoder(nn.Module):
    """Encoder, bottleneck, decoder, and the statistics that standardize the latents.

    `latent_mean` and `latent_std` (one number per channel) are 0 and 1 until `standardize` is told what they are over
    the training set; from then on `encode` gives, and `decode` takes, latents of zero mean and unit variance.
    `output_logvar` is the log variance per image channel of the decoder's Gaussian likelihood, for the objective that
    learns it; no image depends on it. `head` reads a class from the code, where fine-tuning wants that.

    `config` and `image` (channels, height, width of the training images) say how it was made; None if loaded from
    elsewhere.
    `hidden`, batch x h x w, names latent positions whose patch is hidden, for networks that can skip patches.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        network: AutoencoderNetwork,
        bottleneck: Bottleneck,
        *,
        classes: int = 0,
        config: AutoencoderConfig | None = None,
        image: tuple[int, int, int] | None = None,
    ):
        super().__init__()
        channels = bottleneck.channels
        self.network, self.bottleneck, self.latent_channels = network, bottleneck, channels
        self.config, self.image = config, image
        self.decodes_images = True  # and not patches whose mean and variance were taken out
        self.head = nn.Linear(channels, classes) if classes else None
        self.output_logvar = nn.Parameter(torch.zeros(network.image_channels, 1, 1), requires_grad=False)
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(channels, 1, 1))

    @classmethod
    def load(cls, source: str | Path) -> "Autoencoder":
        """The autoencoder in a finished run, in a diffusers AutoencoderKL folder, in a CompVis-keyed .safetensors
        file, or under a hub id; on the CPU.

        Raises CheckpointError if there is none. The scaling and shift of an AutoencoderKL become the statistics.
        """
        autoencoder: Autoencoder = SAVING["load"].load()(source)
        return autoencoder

    def save(self, folder: Path) -> None:
        """Write what `load` reads: a stock AutoencoderKL folder where it is one, else one that brings its own code."""
        SAVING["save"].load()(self, folder)

    @classmethod
    def from_diffusers(cls, kl: "AutoencoderKL") -> "Autoencoder":
        """Any AutoencoderKL of diffusers as an autoencoder of ours, around the same weights."""
        autoencoder: Autoencoder = SAVING["from_diffusers"].load()(kl)
        return autoencoder

    @property
    def is_autoencoder_kl(self) -> bool:
        """Whether it fits diffusers' AutoencoderKL."""
        learns_variance = BOTTLENECKS[self.bottleneck.config.kind].stochastic and self.bottleneck.noise is None
        return self.network.has_autoencoder_kl_shape and learns_variance

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the parts of the network that are called as a whole (encoder, decoder), in place.

        ConfigError for a network whose parts are lists of layers, of which none is called as a whole.
        """
        parts = [part for part in self.network.children() if type(part).forward is not nn.ModuleDict.forward]
        if not parts:
            assert self.config is not None  # all networks of other packages have both
            kind = self.config.network.kind
            raise ConfigError(f"run.compile on: autoencoder.network.kind {kind} cannot be compiled; set it to off")
        for part in parts:
            part.compile(*args, **kwargs)

    def freeze_encoder(self) -> None:
        """From now on no gradient reaches what makes the latents; the decoder learns."""
        for name, parameter in self.network.named_parameters():
            if re.match(r"(encoder|quant_conv)\.", name):
                parameter.requires_grad_(False)

    @torch.no_grad()
    def initialize(self, training_images: Callable[[int], Images]) -> None:
        """Set what starts from training images, of which `training_images` gives so many: weights, the code's scale."""
        assert self.image is not None
        noise = self.bottleneck.starting_noise
        if not self.network.starts_from_data and noise is None:
            return
        images = training_images(max(min(MOST_IMAGES, MOST_VALUES // math.prod(self.image)), 1))
        if self.network.starts_from_data:
            self.network.initialize(images, noise, uncorrelated=self.bottleneck.wants_uncorrelated)
        if noise is not None:
            parts = images.split(64)
            moments = torch.cat([self.network.encode(self.cast(part)) for part in parts])
            self.bottleneck.initialize(moments, self.network.channel_gains)

    @property
    def latent_noise(self) -> Tensor | None:
        """The posterior's standard deviation per channel of the standardized latent; None where it is learned or 0."""
        noise = self.bottleneck.noise
        return None if noise is None else noise / self.latent_std.flatten()

    def encode(self, images: Images, hidden: Tensor | None = None) -> Posterior:
        """The posterior of each image; an image whose sides the downsampling does not divide is first padded.

        It is in float64 if the images or the weights are, and in float32 otherwise, in half precision too.
        """
        return self.raw_posterior(images, hidden).standardized(self.latent_mean, self.latent_std)

    def unrounded(self, images: Images) -> Posterior:
        """What `encode` gives, before a bottleneck that rounds has rounded it."""
        found = self.bottleneck.unrounded(self.moments(images))
        return found.standardized(self.latent_mean, self.latent_std)

    def raw_posterior(self, images: Images, hidden: Tensor | None = None) -> Posterior:
        """The posterior as the bottleneck gives it, before it is standardized: a sparse code has its zeros."""
        return self.bottleneck.posterior(self.moments(images, hidden))

    def moments(self, images: Images, hidden: Tensor | None = None) -> Tensor:
        """The encoder's output, which the bottleneck is given."""
        if not images.is_floating_point():  # from 0 to 255 they would be taken for images of a very strong contrast
            raise ConfigError(f"images must be floats in [-1, 1], and not {images.dtype}: scale and shift them first")
        if self.network.fixed_size not in (None, tuple(images.shape[1:])):
            assert self.network.fixed_size is not None
            only, given = (format_size(tuple(sides)) for sides in (self.network.fixed_size[1:], images.shape[2:]))
            raise ConfigError(f"{self.network.downsampling_setting} takes images of size {only} alone, not of {given}")
        moments = self.network.encode(self.cast(padded(images, self.network.downsampling)), hidden)
        return moments.to(torch.promote_types(moments.dtype, images.dtype))

    def code(self, moments: Tensor, rng: StepRandom) -> Code:
        """The standardized code of the encoder's output in training: with samples, and what they cost."""
        code: Code = self.bottleneck(moments, rng, (self.latent_mean, self.latent_std))
        return code

    def decode(self, latents: Latents, hidden: Tensor | None = None) -> Images:
        """The image of each latent, in [-1, 1] as far as the decoder learned it and not clamped; precision as above."""
        return self.decode_raw(latents * self.latent_std + self.latent_mean, hidden)

    def decode_raw(self, code: Tensor, hidden: Tensor | None = None) -> Images:
        """The image of a code that is not standardized."""
        images = self.network.decode(self.cast(self.unit_norm_scaled(code)), hidden)
        return full_precision(images.to(torch.promote_types(images.dtype, code.dtype)))

    def cast(self, x: Tensor) -> Tensor:
        """A tensor in the precision of the network's weights."""
        first = next(self.network.parameters(), None)
        return x if first is None else x.to(first.dtype)

    def unit_norm_scaled(self, code: Tensor) -> Tensor:
        """The code in units of the decoder's columns: these have length 1 where the bottleneck says so."""
        if not self.bottleneck.unit_norm:
            return code
        lengths = self.network.decoder_in_weight.transpose(0, 1).flatten(1).norm(dim=1)
        return code / lengths.clamp_min(1e-8).to(code.dtype).view(-1, 1, 1)

    def reconstruct(self, images: Images) -> Images:
        """Each image through the mode of its posterior and back, at its own size."""
        height, width = images.shape[-2:]
        return self.decode(self.encode(images).mode())[..., :height, :width]

    def score(self, noisy: Images, sigma: float | Tensor) -> Images:
        """∇ log p_σ(noisy) = (reconstruct(noisy) − noisy) / σ² (Vincent 2011), `sigma` one number, or one per image.

        Exact as far as the autoencoder was trained to undo Gaussian noise of this very strength under the distance mse.
        """
        return (self.reconstruct(noisy) - noisy) / torch.as_tensor(sigma).to(noisy).view(-1, 1, 1, 1) ** 2

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Take `mean` and `std` (one per channel) of latents as they come out now, and make them 0 and 1.

        A channel that never varies keeps its scale.
        """
        mean, std = mean.to(self.latent_mean).view(-1, 1, 1), std.to(self.latent_std).view(-1, 1, 1)
        self.latent_mean += self.latent_std * mean
        self.latent_std *= torch.where(std > 0, std, torch.ones_like(std))

    def latent_shape(self, sides: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, height, width of the latent of an image of this height and width."""
        height, width = (-(-side // factor) for side, factor in zip(sides, self.network.downsampling, strict=True))
        return self.latent_channels, height, width

    def active_shape(self, sides: tuple[int, int]) -> tuple[int, int, int]:
        """The same, counting of a sparse code only the channels that are kept: what a linear code is compared by."""
        return self.bottleneck.active_channels, *self.latent_shape(sides)[1:]


def padded(images: Images, downsampling: tuple[int, int]) -> Images:
    """Images extended to the right and below until the downsampling divides the sides: reflected, or repeated."""
    down, right = -images.shape[-2] % downsampling[0], -images.shape[-1] % downsampling[1]
    if not down and not right:
        return images
    reflects = down < images.shape[-2] and right < images.shape[-1]
    return F.pad(images, (0, right, 0, down), mode="reflect" if reflects else "replicate")


def create(config: AutoencoderConfig, *, image: tuple[int, int, int], classes: int = 0) -> Autoencoder:
    """An untrained autoencoder, or the pretrained one that the config names, with the statistics that it has.

    `image` is channels, height, width of what it is trained on; `classes` is for a classification head, and 0 for none.
    """
    bottleneck: Bottleneck = BOTTLENECKS[config.bottleneck.kind].load()(config.bottleneck)
    network: AutoencoderNetwork = NETWORKS[config.network.kind].load()(
        config.network,
        image=image,
        encoder_channels=bottleneck.encoder_channels,
        latent_channels=bottleneck.channels,
    )
    autoencoder = Autoencoder(network, bottleneck, classes=classes, config=config, image=image)
    if (statistics := network.pretrained_statistics()) is not None:
        autoencoder.standardize(*statistics)
    return autoencoder


def create_trainable(config: AutoencoderConfig, *, image: tuple[int, int, int], classes: int = 0) -> Autoencoder:
    """What `create` gives, checked for training on images of these channels, height and width, and perhaps frozen."""
    if config.network.kind == "pixels":
        raise ConfigError(
            "autoencoder.network.kind pixels has nothing to train: give train_diffusion.py no --autoencoder for it"
        )
    autoencoder, sides = create(config, image=image, classes=classes), image[1:]
    downsampling = autoencoder.network.downsampling
    if any(side % factor for side, factor in zip(sides, downsampling, strict=True)):
        smaller, larger = (
            tuple(toward(side / factor) * factor for side, factor in zip(sides, downsampling, strict=True))
            for toward in (math.floor, math.ceil)
        )
        near = " or ".join(format_size(nearest) for nearest in (smaller, larger) if all(nearest))
        raise ConfigError(
            f"data.size {format_size(sides)} is not divisible by {downsampling[0]}, the downsampling of"
            f" {autoencoder.network.downsampling_setting}: use {near}"
        )
    if config.freeze_encoder or autoencoder.network.freezes_encoder:
        autoencoder.freeze_encoder()
    return autoencoder


def create_pixels(image: tuple[int, int, int]) -> Autoencoder:
    """The autoencoder that does nothing, for images of these channels, height and width."""
    config = AutoencoderConfig(network=PixelNetworkConfig(), bottleneck=IdentityConfig(channels=image[0]))
    return create(config, image=image).eval()
