"""What a person can say about the autoencoder and what it is judged by."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class KLNetwork:
    """The convolutional encoder and decoder of diffusers' AutoencoderKL; each width after the first halves the size."""

    kind: Literal["kl"] = "kl"
    widths: tuple[int, ...] = (32, 64, 128)  # channels per level; 3 levels downsample by 4
    blocks: int = 1  # residual blocks per level of the encoder; the decoder has one more
    mid_attention: bool = True  # self-attention at the lowest resolution
    norm_groups: int = 16  # groups of the group norm; must divide every width

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more positive numbers, not {self.widths}")
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {self.blocks}")
        if self.norm_groups < 1:
            raise ValueError(f"norm_groups must be at least 1, not {self.norm_groups}")


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian posterior over the latent: the variational bottleneck."""

    kind: Literal["gaussian"] = "gaussian"
    channels: int = 4  # latent channels

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, not {self.channels}")


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

    def __post_init__(self) -> None:
        if not 0 <= self.kl < float("inf"):
            raise ValueError(f"kl must be 0 or more, not {self.kl}")
