"""The autoencoder: images to a posterior over standardized latents, and back."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import config
from ldm.autoencoder import stock
from ldm.autoencoder.bottleneck import BOTTLENECKS, Gaussian, Posterior
from ldm.autoencoder.network import NETWORKS, StockNetwork
from ldm.autoencoder.settings import Autoencoder as AutoencoderSettings
from ldm.autoencoder.settings import Gaussian as GaussianSettings
from ldm.autoencoder.tiny import TinyNetwork
from ldm.checkpoint import read_json
from ldm.errors import CheckpointError, ConfigError
from ldm.shapes import Images, Latents, full_precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


WEIGHTS = "diffusion_pytorch_model.safetensors"


class Autoencoder(nn.Module):
    """Encoder, bottleneck, decoder, and the statistics that standardize the latents.

    `latent_mean` and `latent_std` (one number per channel) are 0 and 1 until `standardize` is told what they are over
    the training set; from then on `encode` gives, and `decode` takes, latents of zero mean and unit variance.
    `output_logvar` is the log variance per image channel of the decoder's Gaussian likelihood, for the objective that
    learns it; no image depends on it.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self, network: StockNetwork | TinyNetwork, bottleneck: Callable[[Tensor], Posterior], latent_channels: int
    ):
        super().__init__()
        self.network = network
        self.bottleneck = bottleneck
        self.latent_channels = latent_channels
        self.output_logvar = nn.Parameter(torch.zeros(network.image_channels, 1, 1), requires_grad=False)
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))

    @classmethod
    def load(cls, source: str | Path) -> "Autoencoder":
        """The autoencoder in a finished run, in a diffusers AutoencoderKL folder, in a CompVis-keyed .safetensors
        file, or under a hub id; on the CPU.

        Raises CheckpointError if there is none. A stock autoencoder's scaling and shift become the statistics.
        """
        folder = stock.located(source)
        return read_ours(folder) if stock.is_ours(folder) else cls.of_stock(stock.read(source))

    @classmethod
    def of_stock(cls, kl: "AutoencoderKL") -> Self:
        """Any AutoencoderKL of diffusers as an autoencoder of ours, around the same weights."""
        channels = kl.config["latent_channels"]
        autoencoder = cls(StockNetwork(kl), Gaussian(GaussianSettings(channels=channels)), channels)
        autoencoder.standardize(*stock.statistics(kl.config))
        return autoencoder.to(kl.device).eval()

    def save(self, folder: Path) -> None:
        """Write what `load` reads, and diffusers too unless the network is tiny, which no class of diffusers fits.

        It is a stock AutoencoderKL folder with the statistics folded in; of a tiny one, a folder of our own.
        """
        if isinstance(self.network, TinyNetwork):
            write_ours(self, self.network, folder)
        else:
            kl = stock.fold(self.network.to_stock(), self.latent_mean, self.latent_std)
            kl.save_pretrained(str(folder), safe_serialization=True)

    def freeze_encoder(self) -> None:
        """From now on no gradient reaches what makes the latents; the decoder learns."""
        for name, parameter in self.network.named_parameters():
            if re.match(r"(encoder|quant_conv)\.", name):
                parameter.requires_grad_(False)

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


def assemble(settings: AutoencoderSettings, *, image_channels: int) -> Autoencoder:
    """An untrained autoencoder, or the existing one that the settings start from, with the statistics that it has."""
    bottleneck = BOTTLENECKS[type(settings.bottleneck)](settings.bottleneck)
    network = NETWORKS[type(settings.network)](
        settings.network, image_channels=image_channels, latent_channels=bottleneck.channels
    )
    autoencoder = Autoencoder(network, bottleneck, bottleneck.channels)
    if isinstance(network, StockNetwork):
        autoencoder.standardize(*stock.statistics(network.config))
    return autoencoder


def build(settings: AutoencoderSettings, *, image_channels: int, sides: tuple[int, int]) -> Autoencoder:
    """What `assemble` gives, ready to be trained on images of this height and width."""
    autoencoder = assemble(settings, image_channels=image_channels)
    factor = autoencoder.network.factor
    if any(side % factor for side in sides):
        below, above = (tuple(toward(side / factor) * factor for side in sides) for toward in (math.floor, math.ceil))
        near = " or ".join(spelled(nearest) for nearest in (below, above) if all(nearest))
        raise ConfigError(
            f"data.size {spelled(sides)} is not divisible by {factor}, the downsampling of"
            f" {autoencoder.network.factor_setting}: use {near}"
        )
    if settings.trains == "decoder":
        if settings.network.kind != "stock":
            raise ConfigError(
                f"autoencoder.trains decoder with autoencoder.network.kind {settings.network.kind} would leave the"
                " encoder as random as it begins: use kind stock and the path of an autoencoder"
            )
        autoencoder.freeze_encoder()
    return autoencoder


def write_ours(autoencoder: Autoencoder, network: TinyNetwork, folder: Path) -> None:
    """A folder in our own format: settings as JSON, and weights with the statistics beside them."""
    bottleneck = config.to_dict(GaussianSettings(channels=autoencoder.latent_channels))
    described = {"network": config.to_dict(network.settings), "bottleneck": bottleneck}
    facts = {"_class_name": stock.OURS, "image_channels": network.image_channels, **described}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts, indent=2))
    weights = {name: value.detach().cpu().contiguous() for name, value in autoencoder.state_dict().items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS, {"format": "pt"})


def read_ours(folder: Path) -> Autoencoder:
    """What `write_ours` wrote, or CheckpointError."""
    try:
        facts = read_json(folder / "config.json")
        described = {name: facts[name] for name in ("network", "bottleneck")}
        autoencoder = assemble(config.from_dict(AutoencoderSettings, described), image_channels=facts["image_channels"])
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        stock.refuse_infinite(tensors)
        autoencoder.load_state_dict(tensors)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"the autoencoder in {folder} cannot be read: {reason}") from error
    return autoencoder.eval()
