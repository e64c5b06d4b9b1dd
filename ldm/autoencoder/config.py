"""What a person can say about the autoencoder and what it is judged by."""

from dataclasses import dataclass, field
from typing import Literal

from ldm.autoencoder.penalty import PenaltiesConfig
from ldm.corruption import Corruption
from ldm.training.config import OptimConfig


@dataclass(frozen=True)
class KLNetworkConfig:
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
class TinyNetworkConfig:
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
class StockNetworkConfig:
    """An autoencoder that exists already, weights and all, to train on from."""

    kind: Literal["stock"] = "stock"
    path: str = ""  # an AutoencoderKL folder, a run of train_vae.py, or a CompVis-keyed .safetensors file

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("path is empty: name the autoencoder to start from")


Activation = Literal["none", "relu", "silu", "tanh", "sigmoid"]


@dataclass(frozen=True)
class LinearNetworkConfig:
    """One matrix from the whole image to the code, and one back: at its best the principal components."""

    kind: Literal["linear"] = "linear"
    tied: bool = False  # the decoder's matrix is the encoder's, transposed
    centered: bool = False  # the encoder sees the image minus the decoder's bias, as a dictionary of sparse codes wants


@dataclass(frozen=True)
class MLPNetworkConfig:
    """Fully connected layers over the whole image; the decoder mirrors the encoder."""

    kind: Literal["mlp"] = "mlp"
    widths: tuple[int, ...] = (512, 256)  # of the layers between image and code
    activation: Activation = "silu"  # of these layers; that of the code belongs to the bottleneck
    tied: bool = False  # the decoder's matrices are the encoder's, transposed

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more positive numbers, not {self.widths}; kind linear has none")


@dataclass(frozen=True)
class ViTNetworkConfig:
    """A vision transformer whose encoder sees visible patches only, with a lighter decoder (MAE, He et al. 2022)."""

    kind: Literal["vit"] = "vit"
    patch: int = 4  # pixels wide
    width: int = 128  # of the encoder's tokens
    depth: int = 6  # blocks of the encoder
    heads: int = 4  # of its attention
    decoder_width: int = 64
    decoder_depth: int = 2
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        for name in ("patch", "depth", "decoder_depth", "heads", "decoder_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            if getattr(self, width) < 4 or getattr(self, width) % 4:
                raise ValueError(f"{width} must be a multiple of 4, not {getattr(self, width)}")
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{heads} {getattr(self, heads)} does not divide {width} {getattr(self, width)}")


@dataclass(frozen=True)
class PixelNetworkConfig:
    """No network: the latents are the pixels. What train_diffusion.py takes where no autoencoder is given."""

    kind: Literal["pixels"] = "pixels"


@dataclass(frozen=True)
class GaussianConfig:
    """A diagonal Gaussian posterior over the latent: the variational bottleneck."""

    kind: Literal["gaussian"] = "gaussian"
    channels: int = 4  # latent channels

    def __post_init__(self) -> None:
        refuse_no_channels(self.channels)


@dataclass(frozen=True)
class IdentityConfig:
    """The code is what the encoder says; only its size holds it back, or a corruption, or a penalty."""

    kind: Literal["identity"] = "identity"
    channels: int = 4  # latent channels; of a linear or an MLP network, all the numbers of a code

    def __post_init__(self) -> None:
        refuse_no_channels(self.channels)


@dataclass(frozen=True)
class SparseConfig:
    """A code of which most is 0: by a penalty on it, or because only the largest of its values are kept."""

    kind: Literal["sparse"] = "sparse"
    channels: int = 256  # units, at each position of the latent
    activation: Literal["relu", "sigmoid"] = "relu"  # sigmoid is for penalties.kl_sparsity
    k: int = 0  # how many of the units are kept at each position, the largest; 0: all
    unit_norm: bool = (
        True  # give every unit a column of length 1 in the decoder, so that codes cannot shrink for nothing
    )
    dead_after: int = 200  # steps without a value above 0 after which a unit counts as dead

    def __post_init__(self) -> None:
        refuse_no_channels(self.channels)
        if not 0 <= self.k <= self.channels:
            raise ValueError(f"k must be from 0 to channels {self.channels}, not {self.k}")
        if self.k and self.activation == "sigmoid":
            raise ValueError("k keeps the largest values and sets the others to 0, which sigmoid never is: use relu")
        if self.dead_after < 1:
            raise ValueError(f"patience must be at least 1, not {self.dead_after}")


def refuse_no_channels(channels: int) -> None:
    """Raise ValueError for less than one."""
    if channels < 1:
        raise ValueError(f"channels must be at least 1, not {channels}")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Encoder, bottleneck, decoder."""

    network: (
        KLNetworkConfig
        | TinyNetworkConfig
        | StockNetworkConfig
        | LinearNetworkConfig
        | MLPNetworkConfig
        | ViTNetworkConfig
        | PixelNetworkConfig
    ) = field(default_factory=KLNetworkConfig)
    bottleneck: GaussianConfig | IdentityConfig | SparseConfig = field(default_factory=GaussianConfig)
    trains: Literal["all", "decoder"] = "all"  # decoder: the encoder, and so every latent, stays as it is


@dataclass(frozen=True)
class PerceptualConfig:
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
class DiscriminatorConfig:
    """A patch discriminator that joins late and judges whether a reconstruction looks like an image."""

    weight: float = 0.5  # of the adversarial loss, on top of the adaptive weight
    loss: Literal["hinge", "non-saturating"] = "hinge"
    start: float = 0.5  # fraction of the run at which the discriminator begins to learn
    warmup: float = 0.05  # fraction of the run over which the autoencoder then comes to feel it
    adaptive: bool = True  # bring its gradient at the last layer to the length of the distances' gradient
    width: int = 64  # channels of the first layer
    layers: int = 3  # layers that halve the size
    lecam: float = 0.0  # weight of the LeCAM regularization
    r1: float = 0.0  # weight of the gradient penalty at real images
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4, betas=(0.5, 0.9)))

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
class EquivarianceConfig:
    """In some steps the latent is scaled and turned, and must decode to the scaled and turned image (EQ-VAE)."""

    probability: float = 0.5  # of such a step
    min_scale: float = 0.25  # the smallest scale; the largest is 1
    rotate90: bool = True  # by quarters

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be from 0 to 1, not {self.probability}")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"smallest must be above 0 and at most 1, not {self.min_scale}")


@dataclass(frozen=True)
class StageConfig:
    """A part of the run: what trains, on what target, with what corruption, for how long."""

    share: float = 1.0  # of the run's steps, in proportion to the shares of the other stages
    layer: int = 0  # of a linear or an MLP network, 1 being next to the image; 0: all of the network at once
    trains: Literal["all", "encoder", "decoder"] = "all"  # of the layer, or of the network; the rest is frozen
    target: Literal["below", "images"] = "below"  # what a layer gives back: what it was given, or the images
    corruption: Corruption | None = None  # of what is given; null: that of the objective, where layer is 0
    classification: bool = True  # whether penalties.classification counts in this stage

    def __post_init__(self) -> None:
        if not 0 < self.share < float("inf"):
            raise ValueError(f"share must be positive, not {self.share}")
        if self.layer < 0:
            raise ValueError(f"layer must be 0 or more, not {self.layer}")


@dataclass(frozen=True)
class ReconstructionObjectiveConfig:
    """distance + perceptual + kl * KL, all per image value, + the penalties + the discriminator's opinion."""

    distance: Literal["l1", "mse", "huber", "gaussian"] = "l1"  # gaussian: a likelihood whose variance is learned
    kl: float = 1e-6  # weight of the KL, summed over the latent and divided by the number of image values
    corruption: Corruption | None = None  # what is done to the images before the encoder sees them; null: nothing
    latent_corruption: Corruption | None = None  # what is done to the latent before the decoder sees it; null: nothing
    emphasis: float | None = None  # share of touched elements in the distance, of untouched the rest; null: all equal
    target: Literal["images", "normalized-patches"] = "images"  # the latter: each patch with mean 0 and variance 1
    penalties: PenaltiesConfig = field(default_factory=PenaltiesConfig)
    perceptual: PerceptualConfig | None = None  # null: none
    discriminator: DiscriminatorConfig | None = None  # null: none
    equivariance: EquivarianceConfig | None = None  # null: none
    stages: tuple[
        StageConfig, ...
    ] = ()  # what trains when: a list of {share, layer, trains, target, corruption}; none: all

    def __post_init__(self) -> None:
        if not 0 <= self.kl < float("inf"):
            raise ValueError(f"kl must be 0 or more, not {self.kl}")
        if self.emphasis is not None and not 0 <= self.emphasis <= 1:
            raise ValueError(f"emphasis must be from 0 to 1, not {self.emphasis}")
