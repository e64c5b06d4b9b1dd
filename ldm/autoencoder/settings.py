"""What a person can say about the autoencoder and what it is judged by."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class KLNetwork:
    """The convolutional encoder and decoder of diffusers' AutoencoderKL; each width after the first halves the image."""

    kind: Literal["kl"] = "kl"
    widths: tuple[int, ...] = (32, 64, 128)  # channels per level; 3 levels downsample by 4
    blocks: int = 1  # residual blocks per level of the encoder; the decoder has one more
    mid_attention: bool = True  # self-attention at the lowest resolution
    norm_groups: int = 16  # groups of the group norm; must divide every width


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian posterior over the latent: the variational bottleneck."""

    kind: Literal["gaussian"] = "gaussian"
    channels: int = 4  # latent channels


@dataclass(frozen=True)
class Autoencoder:
    """Encoder, bottleneck, decoder."""

    network: KLNetwork = field(default_factory=KLNetwork)
    bottleneck: Gaussian = field(default_factory=Gaussian)


@dataclass(frozen=True)
class Objective:
    """distance(images, reconstruction) + kl * KL, both per image value."""

    distance: Literal["l1", "mse"] = "l1"  # mean over the image values
    kl: float = 1e-6  # weight of the KL, summed over the latent and divided by the number of image values
