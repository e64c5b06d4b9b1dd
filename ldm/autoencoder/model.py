"""The autoencoder: images to a posterior over standardized latents, and back."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder.bottleneck import BOTTLENECKS, Bottleneck, GaussianBottleneck, Posterior
from ldm.autoencoder.config import AutoencoderConfig, GaussianConfig, IdentityConfig, PixelNetworkConfig
from ldm.autoencoder.formats import diffusers
from ldm.autoencoder.networks.kl import NETWORKS, StockNetwork
from ldm.checkpoint import read_json
from ldm.config import reader
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
    learns it; no image depends on it. `head` reads a class from the code, where fine-tuning wants that.

    `hidden`, batch x h x w, names latent positions whose patch is hidden, for the networks that can leave them out.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, network: Any, bottleneck: Bottleneck, *, classes: int = 0):
        super().__init__()
        channels = bottleneck.channels
        self.network, self.bottleneck, self.latent_channels = network, bottleneck, channels
        self.saved_config: dict[str, Any] = {}  # the settings it was made from, and the shape of its images
        self.decodes_images = True  # and not patches whose mean and variance were taken out
        self.head = nn.Linear(channels, classes) if classes else None
        self.output_logvar = nn.Parameter(torch.zeros(network.image_channels, 1, 1), requires_grad=False)
        self.register_buffer("latent_mean", torch.zeros(channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(channels, 1, 1))

    @classmethod
    def load(cls, source: str | Path) -> "Autoencoder":
        """The autoencoder in a finished run, in a diffusers AutoencoderKL folder, in a CompVis-keyed .safetensors
        file, or under a hub id; on the CPU.

        Raises CheckpointError if there is none. A stock autoencoder's scaling and shift become the statistics.
        """
        folder = diffusers.resolve_path(source)
        return read_ours(folder) if diffusers.is_ours(folder) else cls.from_diffusers(diffusers.read(source))

    @classmethod
    def from_diffusers(cls, kl: "AutoencoderKL") -> Self:
        """Any AutoencoderKL of diffusers as an autoencoder of ours, around the same weights."""
        channels = kl.config["latent_channels"]
        autoencoder = cls(StockNetwork(kl), GaussianBottleneck(GaussianConfig(channels=channels)))
        autoencoder.standardize(*diffusers.statistics(kl.config))
        return autoencoder.to(kl.device).eval()

    @property
    def is_autoencoder_kl(self) -> bool:
        """Whether it fits diffusers' AutoencoderKL."""
        return isinstance(self.network, StockNetwork) and self.bottleneck.is_distribution

    def save(self, folder: Path) -> None:
        """Write what `load` reads, and diffusers too where it has a class for it.

        It is then a stock AutoencoderKL folder with the statistics folded in; otherwise, a folder of our own.
        """
        if self.is_autoencoder_kl:
            kl = diffusers.fold(self.network.to_stock(), self.latent_mean, self.latent_std)
            kl.save_pretrained(str(folder), safe_serialization=True)
        else:
            write_ours(self, folder)

    def freeze_encoder(self) -> None:
        """From now on no gradient reaches what makes the latents; the decoder learns."""
        for name, parameter in self.network.named_parameters():
            if re.match(r"(encoder|quant_conv)\.", name):
                parameter.requires_grad_(False)

    def encode(self, images: Images, hidden: Tensor | None = None) -> Posterior:
        """The posterior of each image; an image whose sides the factors do not divide is first padded."""
        return self.code(images, hidden).standardized(self.latent_mean, self.latent_std)

    def code(self, images: Images, hidden: Tensor | None = None) -> Posterior:
        """The posterior as the bottleneck gives it, before it is standardized: a sparse code has its zeros."""
        if hasattr(self.network, "image") and tuple(images.shape[1:]) != self.network.image:
            only, given = (format_size(tuple(sides)) for sides in (self.network.image[1:], images.shape[2:]))
            raise ConfigError(f"{self.network.downsampling_setting} takes images of size {only} alone, not of {given}")
        return self.bottleneck(self.network.encode(padded(images, self.network.downsampling), hidden))

    def decode(self, latents: Latents, hidden: Tensor | None = None) -> Images:
        """The image of each latent, in [-1, 1] as far as the decoder learned it; not clamped."""
        return self.decode_code(latents * self.latent_std + self.latent_mean, hidden)

    def decode_code(self, code: Tensor, hidden: Tensor | None = None) -> Images:
        """The image of a code that is not standardized."""
        return full_precision(self.network.decode(self.unit_norm_scaled(code), hidden))

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

    def numbers(self, sides: tuple[int, int]) -> tuple[int, int, int]:
        """The same, counting of a sparse code only the channels that are kept: what a linear code is compared by."""
        channels, height, width = self.latent_shape(sides)
        return getattr(self.bottleneck, "k", 0) or channels, height, width


def padded(images: Images, downsampling: tuple[int, int]) -> Images:
    """Images extended to the right and below until `factors` divide the sides: reflected, or repeated when tiny."""
    down, right = -images.shape[-2] % downsampling[0], -images.shape[-1] % downsampling[1]
    if not down and not right:
        return images
    reflects = down < images.shape[-2] and right < images.shape[-1]
    return F.pad(images, (0, right, 0, down), mode="reflect" if reflects else "replicate")


def format_size(sides: tuple[int, ...]) -> str:
    """Height and width as a person writes data.size: one number for a square."""
    return str(sides[0]) if len(set(sides)) == 1 else str(list(sides))


def create(config: AutoencoderConfig, *, image: tuple[int, int, int], classes: int = 0) -> Autoencoder:
    """An untrained autoencoder, or the existing one that the settings start from, with the statistics that it has.

    `image` is channels, height, width of what it is trained on; `classes` is for a head, and 0 for none.
    """
    bottleneck = BOTTLENECKS[type(config.bottleneck)](config.bottleneck)
    network = NETWORKS[type(config.network)](
        config.network,
        image=image,
        encoder_channels=bottleneck.encoder_channels,
        latent_channels=bottleneck.channels,
    )
    autoencoder = Autoencoder(network, bottleneck, classes=classes)
    if autoencoder.is_autoencoder_kl:
        autoencoder.standardize(*diffusers.statistics(network.config))
    autoencoder.saved_config = {**reader.to_dict(config), "image": list(image)}
    return autoencoder


def create_trainable(config: AutoencoderConfig, *, image: tuple[int, int, int], classes: int = 0) -> Autoencoder:
    """What `assemble` gives, ready to be trained on images of these channels, height and width."""
    if config.network.kind == "pixels":
        raise ConfigError(
            "autoencoder.network.kind pixels has nothing to train: give train_diffusion.py no --autoencoder for it"
        )
    autoencoder, sides = create(config, image=image, classes=classes), image[1:]
    downsampling = autoencoder.network.downsampling
    if any(side % factor for side, factor in zip(sides, downsampling, strict=True)):
        below, above = (
            tuple(toward(side / factor) * factor for side, factor in zip(sides, downsampling, strict=True))
            for toward in (math.floor, math.ceil)
        )
        near = " or ".join(format_size(nearest) for nearest in (below, above) if all(nearest))
        raise ConfigError(
            f"data.size {format_size(sides)} is not divisible by {downsampling[0]}, the downsampling of"
            f" {autoencoder.network.downsampling_setting}: use {near}"
        )
    if config.trains == "decoder":
        if config.network.kind != "stock":
            raise ConfigError(
                f"autoencoder.trains decoder with autoencoder.network.kind {config.network.kind} would leave the"
                " encoder as random as it begins: use kind stock and the path of an autoencoder"
            )
        autoencoder.freeze_encoder()
    return autoencoder


def pixel_autoencoder(image: tuple[int, int, int]) -> Autoencoder:
    """The autoencoder that does nothing, for images of these channels, height and width."""
    config = AutoencoderConfig(network=PixelNetworkConfig(), bottleneck=IdentityConfig(channels=image[0]))
    return create(config, image=image).eval()


def write_ours(autoencoder: Autoencoder, folder: Path) -> None:
    """A folder in our own format: settings as JSON, and weights with the statistics beside them."""
    facts = {"_class_name": diffusers.OURS, "decodes_images": autoencoder.decodes_images, **autoencoder.saved_config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts, indent=2))
    weights = {name: value.detach().cpu().contiguous() for name, value in autoencoder.state_dict().items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS, {"format": "pt"})


def read_ours(folder: Path) -> Autoencoder:
    """What `write_ours` wrote, or CheckpointError."""
    try:
        facts = read_json(folder / "config.json")
        saved_config = {name: facts[name] for name in ("network", "bottleneck")}
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
        diffusers.check_finite(tensors)
        channels, height, width = map(int, facts["image"])
        config = reader.from_dict(AutoencoderConfig, saved_config)
        autoencoder = create(config, image=(channels, height, width), classes=classes_of(tensors))
        autoencoder.load_state_dict(tensors)
        autoencoder.decodes_images = bool(facts["decodes_images"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"the autoencoder in {folder} cannot be read: {reason}") from error
    return autoencoder.eval()


def classes_of(tensors: dict[str, Tensor]) -> int:
    """How many classes the head among these weights of an autoencoder tells apart; 0 if there is none."""
    return len(tensors["head.weight"]) if "head.weight" in tensors else 0
