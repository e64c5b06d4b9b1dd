"""What a person can say about the autoencoder and what it is judged by."""

from dataclasses import dataclass, field
from typing import Literal

from ldm.training.settings import Optim


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
class TinyNetwork:
    """Residual blocks of three plain convolutions, no norm, no attention, for fast decoding; each level halves."""

    kind: Literal["tiny"] = "tiny"
    width: int = 64  # channels, the same everywhere
    levels: int = 3  # 3 levels downsample by 8
    blocks: int = 3  # residual blocks per level

    def __post_init__(self) -> None:
        for name in ("width", "levels", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class StockNetwork:
    """An autoencoder that exists already, weights and all, to train on from."""

    kind: Literal["stock"] = "stock"
    path: str = ""  # an AutoencoderKL folder, a run of train_vae.py, or a CompVis-keyed .safetensors file

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("path is empty: name the autoencoder to start from")


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

    network: KLNetwork | TinyNetwork | StockNetwork = field(default_factory=KLNetwork)
    bottleneck: Gaussian = field(default_factory=Gaussian)
    trains: Literal["all", "decoder"] = "all"  # decoder: the encoder, and so every latent, stays as it is


@dataclass(frozen=True)
class Perceptual:
    """A distance between features of a pretrained network, added to the distance between pixels."""

    weight: float = 0.5  # of the distance, as LPIPS counts it
    backbone: Literal["vgg", "alex", "squeeze", "features", "random"] = "vgg"  # random is for tests only
    weights: str = ""  # file of the backbone's weights, or folder of features; empty: as torch has or downloads it
    size: int = 128  # images with a shorter side below this are first enlarged to it

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight must be positive, not {self.weight}; leave perceptual out for none")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.backbone == "features" and not self.weights.strip():
            raise ValueError("backbone features needs weights: a folder with config.json and the weights")


@dataclass(frozen=True)
class Critic:
    """A patch discriminator that joins late and judges whether a reconstruction looks like an image."""

    weight: float = 0.5  # of the adversarial loss, on top of the adaptive weight
    loss: Literal["hinge", "non-saturating"] = "hinge"
    start: float = 0.5  # fraction of the run at which the critic begins to learn
    warmup: float = 0.05  # fraction of the run over which the autoencoder then comes to feel it
    adaptive: bool = True  # bring its gradient at the last layer to the length of the distances' gradient
    width: int = 64  # channels of the first layer
    layers: int = 3  # layers that halve the size
    lecam: float = 0.0  # weight of the LeCAM regularization
    r1: float = 0.0  # weight of the gradient penalty at real images
    optim: Optim = field(default_factory=lambda: Optim(lr=2e-4, betas=(0.5, 0.9)))

    def __post_init__(self) -> None:
        for name in ("weight", "lecam", "r1"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("start", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a fraction from 0 to 1, not {getattr(self, name)}")
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Equivariance:
    """In some steps the latent is scaled and turned, and must decode to the scaled and turned image (EQ-VAE)."""

    probability: float = 0.5  # of such a step
    smallest: float = 0.25  # the smallest scale; the largest is 1
    turns: bool = True  # by quarters

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, not {self.probability}")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"smallest must be above 0 and at most 1, not {self.smallest}")


@dataclass(frozen=True)
class Objective:
    """distance + perceptual + kl * KL, all per image value, + the critic's opinion."""

    distance: Literal["l1", "mse", "huber", "gaussian"] = "l1"  # gaussian: a likelihood whose variance is learned
    kl: float = 1e-6  # weight of the KL, summed over the latent and divided by the number of image values
    perceptual: Perceptual | None = None  # null: none
    critic: Critic | None = None  # null: none
    equivariance: Equivariance | None = None  # null: none
    latent_noise: float = 0.0  # largest strength of noise mixed into the latent in training; 3 is usual, 0 is none
    hidden: float = 0.0  # largest probability of a patch of the image to be hidden from the encoder in training

    def __post_init__(self) -> None:
        for name in ("kl", "latent_noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.hidden < 1:
            raise ValueError(f"hidden must be a fraction from 0 to below 1, not {self.hidden}")
