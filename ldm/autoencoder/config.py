"""Config of the autoencoder and of its training loss, with the tables of the parts to choose from."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from ldm.autoencoder.losses.config import DiscriminatorConfig, EquivarianceConfig, PerceptualConfig, Weight
from ldm.autoencoder.penalty import PenaltiesConfig
from ldm.config.bounds import Above, AtLeast, Between, Checked, OneOf
from ldm.config.parts import Part
from ldm.corruption import Corruption, Mask

Count = Annotated[int, AtLeast(1)]
Fraction = Annotated[float, Between(0, 1)]


@dataclass(frozen=True)
class BottleneckFacts(Part):
    """What is known of a bottleneck."""

    stochastic: bool = False  # whether its code is a sample in training, of a posterior that a KL is taken of
    has_rate: bool = False  # whether its code is rounded and entropy coded, at a cost in bits


@dataclass(frozen=True)
class DistanceFacts(Part):
    """What is known of a distance between images."""

    learns_variance: bool = False  # whether it is a likelihood whose variance is learned


NETWORKS = {
    "kl": Part("ldm.autoencoder.networks.kl:KLNetwork"),
    "residual": Part("ldm.autoencoder.networks.residual:ResidualNetwork"),
    "tiny": Part("ldm.autoencoder.networks.tiny:TinyNetwork"),
    "taesd": Part("ldm.autoencoder.networks.taesd:TAESDNetwork"),
    "pretrained": Part("ldm.autoencoder.networks.kl:PretrainedNetwork"),
    "linear": Part("ldm.autoencoder.networks.mlp:MLPNetwork"),
    "mlp": Part("ldm.autoencoder.networks.mlp:MLPNetwork"),
    "vit": Part("ldm.autoencoder.networks.vit:ViTNetwork"),
    "pixels": Part("ldm.autoencoder.networks.identity:IdentityNetwork"),
}

BOTTLENECKS = {
    "gaussian": BottleneckFacts("ldm.autoencoder.bottleneck:GaussianBottleneck", stochastic=True),
    "identity": BottleneckFacts("ldm.autoencoder.bottleneck:IdentityBottleneck"),
    "sparse": BottleneckFacts("ldm.autoencoder.bottleneck:SparseBottleneck"),
    "quantized": BottleneckFacts("ldm.autoencoder.quantized:QuantizedBottleneck", has_rate=True),
}

DISTANCES = {
    "l1": DistanceFacts("ldm.autoencoder.losses.distance:l1"),
    "mse": DistanceFacts("ldm.autoencoder.losses.distance:mse"),
    "rmse": DistanceFacts("ldm.autoencoder.losses.distance:rmse"),
    "huber": DistanceFacts("ldm.autoencoder.losses.distance:huber"),
    "gaussian": DistanceFacts("ldm.autoencoder.losses.distance:gaussian", learns_variance=True),
}

PERCEPTUAL = Part("ldm.autoencoder.losses.perceptual:Perceptual")


@dataclass(frozen=True)
class KLNetworkConfig(Checked):
    """The convolutional encoder and decoder of diffusers' AutoencoderKL; each width after the first halves the size."""

    kind: Literal["kl"] = "kl"
    widths: tuple[Count, ...] = (32, 64, 128)  # channels per level; 3 levels downsample by 4
    blocks: Count = 1  # residual blocks per level of the encoder; the decoder has one more
    mid_attention: bool = True  # self-attention at the lowest resolution
    norm_groups: Count = 16  # groups of the group norm; must divide every width

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ValueError("widths must be one or more numbers, not none")
        for width in self.widths:
            if width % self.norm_groups:
                raise ValueError(f"norm_groups {self.norm_groups} does not divide {width}, one of widths")


@dataclass(frozen=True)
class ResidualNetworkConfig(Checked):
    """Residual blocks at the resolution of the latent, beside the best linear transform of the images: their start."""

    kind: Literal["residual"] = "residual"
    downsampling: Annotated[int, Between(1, 32)] = 4  # pixels a side that become one latent position
    width: Count = 64  # channels of the blocks
    blocks: Annotated[int, AtLeast(0)] = 2  # residual blocks of the encoder; with 0 it is linear
    decoder_blocks: Count | None = None  # residual blocks of the decoder; null: one more than the encoder has
    encoder_lr_factor: Fraction = 1.0  # of the learning rate, of the encoder; with 0 it stays as it starts


@dataclass(frozen=True)
class TinyNetworkConfig(Checked):
    """Residual blocks of three plain convolutions, no norm, no attention, for fast decoding; each level halves."""

    kind: Literal["tiny"] = "tiny"
    width: Count = 64  # channels, the same everywhere
    levels: Count = 3  # 3 levels downsample by 8
    blocks: Count = 3  # residual blocks per level


@dataclass(frozen=True)
class TAESDNetworkConfig(Checked):
    """The network of TAESD, diffusers' AutoencoderTiny: with bottleneck.kind identity, it is exported as that class."""

    kind: Literal["taesd"] = "taesd"
    width: Count = 64  # channels, the same everywhere
    blocks: tuple[Count, ...] = (1, 3, 3, 3)  # residual blocks per level, from the image on; the decoder mirrors them
    latent_norm: bool = False  # group norms in the blocks next to the latent, as TAEF2 has them and AutoencoderTiny not


@dataclass(frozen=True)
class PretrainedNetworkConfig(Checked):
    """A pretrained AutoencoderKL, weights and all, to fine-tune."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = ""  # an AutoencoderKL folder, a run of train_vae.py, or a CompVis-keyed .safetensors file

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path.strip():
            raise ValueError("path is empty: name the autoencoder to start from")


@dataclass(frozen=True)
class LinearNetworkConfig(Checked):
    """One matrix from the whole image to the code, and one back: at its best the principal components."""

    kind: Literal["linear"] = "linear"
    tied: bool = False  # the decoder's matrix is the encoder's, transposed
    centered: bool = False  # the encoder sees the image minus the decoder's bias, as a dictionary of sparse codes wants


@dataclass(frozen=True)
class MLPNetworkConfig(Checked):
    """Fully connected layers over the whole image; the decoder mirrors the encoder."""

    kind: Literal["mlp"] = "mlp"
    widths: tuple[Count, ...] = (512, 256)  # of the layers between image and code
    activation: Literal["none", "relu", "silu", "tanh", "sigmoid"] = "silu"  # of these layers, not of the code
    tied: bool = False  # the decoder's matrices are the encoder's, transposed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ValueError("widths must be one or more numbers, not none; kind linear has no layers between")


@dataclass(frozen=True)
class ViTNetworkConfig(Checked):
    """A vision transformer whose encoder sees visible patches only, with a lighter decoder (MAE, He et al. 2022)."""

    kind: Literal["vit"] = "vit"
    patch: Count = 4  # pixels wide
    width: Annotated[int, AtLeast(4)] = 128  # of the encoder's tokens; a multiple of 4 and of `heads`
    depth: Count = 6  # blocks of the encoder
    heads: Count = 4  # of its attention
    decoder_width: Annotated[int, AtLeast(4)] = 64  # of the decoder's tokens; a multiple of 4 and of `decoder_heads`
    decoder_depth: Count = 2  # blocks of the decoder
    decoder_heads: Count = 4  # of its attention

    def __post_init__(self) -> None:
        super().__post_init__()
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            if getattr(self, width) % 4:
                raise ValueError(f"{width} must be a multiple of 4, not {getattr(self, width)}")
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{heads} {getattr(self, heads)} does not divide {width} {getattr(self, width)}")


@dataclass(frozen=True)
class PixelNetworkConfig(Checked):
    """No network: the latents are the pixels. What train_diffusion.py takes where no autoencoder is given."""

    kind: Literal["pixels"] = "pixels"


NetworkConfig: TypeAlias = (
    KLNetworkConfig
    | ResidualNetworkConfig
    | TinyNetworkConfig
    | TAESDNetworkConfig
    | PretrainedNetworkConfig
    | LinearNetworkConfig
    | MLPNetworkConfig
    | ViTNetworkConfig
    | PixelNetworkConfig
)


@dataclass(frozen=True)
class GaussianConfig(Checked):
    """A diagonal Gaussian posterior over the latent: the variational bottleneck."""

    kind: Literal["gaussian"] = "gaussian"
    channels: Count = 4  # latent channels
    noise: Annotated[float, Above(0)] | None = None  # its standard deviation, the code's own being 1; null: learned


@dataclass(frozen=True)
class IdentityConfig(Checked):
    """The code is the encoder's output; only its size holds it back, or a corruption, or a penalty."""

    kind: Literal["identity"] = "identity"
    channels: Count = 4  # latent channels; of a linear or an MLP network, all the numbers of a code


@dataclass(frozen=True)
class SparseConfig(Checked):
    """A sparse code: by a penalty on it, or because only the largest of its values are kept (top-k)."""

    kind: Literal["sparse"] = "sparse"
    channels: Count = 256  # units, at each position of the latent
    activation: Literal["relu", "sigmoid"] = "relu"  # sigmoid is for penalties.kl_sparsity
    k: Annotated[int, AtLeast(0)] = 0  # how many of the units are kept at each position, the largest; 0: all
    unit_norm: bool = True  # give every unit a decoder column of length 1, so that codes cannot shrink for nothing
    dead_after: Count = 200  # steps without a value above 0 after which a unit counts as dead

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.channels:
            raise ValueError(f"k must be from 0 to channels {self.channels}, not {self.k}")
        if self.k and self.activation == "sigmoid":
            raise ValueError("k keeps the largest values and sets the others to 0, which sigmoid never is: use relu")


@dataclass(frozen=True)
class QuantizedConfig(Checked):
    """A code that is rounded to a learned step, and costs what its entropy model says: see objective.rate."""

    kind: Literal["quantized"] = "quantized"
    channels: Count = 16  # latent channels; those that are not worth their bits become 0
    step: Annotated[float, Above(0)] = 0.25  # at the start, in standard deviations: the channels' geometric mean
    prior: Literal["factorized", "channel", "checkerboard", "channel-checkerboard"] = (
        "channel-checkerboard"  # entropy model learned with it
    )
    relaxation: Literal["mixed", "noise", "straight-through"] = "mixed"  # of rounding, in training


BottleneckConfig: TypeAlias = GaussianConfig | IdentityConfig | SparseConfig | QuantizedConfig


@dataclass(frozen=True)
class AutoencoderConfig(Checked):
    """Encoder, bottleneck, decoder."""

    network: NetworkConfig = field(default_factory=KLNetworkConfig)
    bottleneck: BottleneckConfig = field(default_factory=GaussianConfig)
    freeze_encoder: bool = False  # fine-tune the decoder alone: the encoder, and so every latent, stays as it is

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_encoder and self.network.kind != "pretrained":
            kind = self.network.kind
            if kind == "residual":
                raise ValueError("freeze_encoder is for network.kind pretrained: use network.encoder_lr_factor 0")
            raise ValueError(f"freeze_encoder leaves the encoder of network.kind {kind} random: use kind pretrained")


@dataclass(frozen=True)
class StageConfig(Checked):
    """A part of the run: what trains, on what target, with what corruption, for how long."""

    fraction: Annotated[float, Above(0)] = 1.0  # of the run's steps, in proportion to the fractions of the other stages
    layer: Annotated[int, AtLeast(0)] = 0  # of a linear or an MLP network, 1 being next to the image; 0: all of them
    trains: Literal["all", "encoder", "decoder"] = "all"  # of the layer, or of the network; the rest is frozen
    target: Literal["input", "images"] = "input"  # what a layer gives back: its own input, or the images
    corruption: Corruption | None = None  # of the stage's input; null: that of the objective, where layer is 0
    classification: bool = True  # whether penalties.classification counts in this stage


@dataclass(frozen=True)
class ReconstructionObjectiveConfig(Checked):
    """distance + perceptual + kl * KL, all per image value, + rate * bits per pixel + penalties + adversarial loss."""

    distance: Annotated[str, OneOf(DISTANCES)] = "l1"  # gaussian: a likelihood whose variance is learned
    kl: Weight = 1e-6  # weight of what the code costs, the KL, summed over the latent and divided by the image values
    rate: Weight = 0.01  # weight of the bits per pixel of a quantized code: the 1 / λ of rate + λ · distance
    corruption: Corruption | None = None  # of the images, before the encoder sees them; null: none
    latent_corruption: Corruption | None = None  # of the latent, before the decoder sees it; null: none
    emphasis: Fraction | None = None  # weight of corrupted elements in the distance, of others the rest; null: equal
    target: Literal["images", "normalized-patches"] = "images"  # the latter: each patch with mean 0 and variance 1
    penalties: PenaltiesConfig = field(default_factory=PenaltiesConfig)
    perceptual: PerceptualConfig | None = None  # null: none
    discriminator: DiscriminatorConfig | None = None  # null: none
    equivariance: EquivarianceConfig | None = None  # null: none
    stages: tuple[StageConfig, ...] = ()  # what trains when: a list of {fraction, layer, trains, ...}; none: all

    @property
    def hides_patches(self) -> bool:
        """Whether some corruption of images is a mask of patches."""
        corruptions = [self.corruption, *(stage.corruption for stage in self.stages if stage.layer < 2)]
        return any(isinstance(each, Mask) and each.unit == "patch" for each in corruptions)
