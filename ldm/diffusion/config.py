"""Config of the denoiser, its training and its sampling, with the tables of the parts to choose from."""

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

from ldm.config.bounds import Above, AtLeast, Between, Checked, OneOf
from ldm.config.parts import Part


@dataclass(frozen=True)
class ParametrizationFacts(Part):
    """What a parametrization gives its network and asks of it, for data and noise of unit variance."""

    target_variance: float = 1.0  # of what the network must put out, at every σ
    input_is_path: bool = False  # the input is (1 - t) clean + t noise with σ = t / (1 - t); else it has unit variance
    keeps_clean_input: bool = True  # D -> noisy as σ -> 0, whatever the network says


PARAMETRIZATIONS = {
    "edm": ParametrizationFacts("ldm.diffusion.denoiser:EDM"),
    "x0": ParametrizationFacts("ldm.diffusion.denoiser:X0", keeps_clean_input=False),
    "eps": ParametrizationFacts("ldm.diffusion.denoiser:EPS"),
    "flow": ParametrizationFacts("ldm.diffusion.denoiser:FLOW", target_variance=2.0, input_is_path=True),
}


@dataclass(frozen=True)
class SamplerFacts(Part):
    """What is known of a sampler."""

    order: int  # halving the steps divides the error by 2 ** order
    calls: int  # of the denoiser per step
    stochastic: bool = False  # whether it may draw noise on the way
    gaussian: bool = False  # whether it needs the Gaussian of the latents, which a skip of kind gaussian has
    consistency: bool = False  # whether it is for models that objective.kind consistency made, and for no others
    options: tuple[str, ...] = ()  # which of SAMPLER_OPTIONS it takes


CHURN = ("churn", "churn_min", "churn_max", "churn_noise")
RESTART = ("restarts", "restart_min", "restart_max")  # each goes a part of the way again, with calls of its own
START = ("gaussian_start",)
SECOND = ("second_sigma",)

SAMPLERS = {
    "euler": SamplerFacts("ldm.diffusion.samplers.one_step:euler", order=1, calls=1),
    "heun": SamplerFacts("ldm.diffusion.samplers.one_step:heun", order=2, calls=2),
    "dpm++2m": SamplerFacts("ldm.diffusion.samplers.multistep:dpmpp_2m", order=2, calls=1),
    "dpm++3m": SamplerFacts("ldm.diffusion.samplers.multistep:dpmpp_3m", order=3, calls=1),
    "unipc": SamplerFacts("ldm.diffusion.samplers.multistep:unipc", order=3, calls=1),
    "ab2": SamplerFacts("ldm.diffusion.samplers.multistep:ab2", order=2, calls=1),
    "ab3": SamplerFacts("ldm.diffusion.samplers.multistep:ab3", order=3, calls=1),
    "ab4": SamplerFacts("ldm.diffusion.samplers.multistep:ab4", order=4, calls=1),
    "gaussian": SamplerFacts(
        "ldm.diffusion.samplers.gaussian_steps:gaussian_1s", order=1, calls=1, gaussian=True, options=START
    ),
    "gaussian2m": SamplerFacts(
        "ldm.diffusion.samplers.gaussian_steps:gaussian_2m", order=2, calls=1, gaussian=True, options=START
    ),
    "euler_ancestral": SamplerFacts(
        "ldm.diffusion.samplers.stochastic:euler_ancestral", order=1, calls=1, stochastic=True
    ),
    "ddim": SamplerFacts("ldm.diffusion.samplers.stochastic:ddim", order=1, calls=1, stochastic=True, options=("eta",)),
    "dpm++2m_sde": SamplerFacts(
        "ldm.diffusion.samplers.multistep:dpmpp_2m_sde", order=2, calls=1, stochastic=True, options=("eta",)
    ),
    "heun_churn": SamplerFacts(
        "ldm.diffusion.samplers.stochastic:heun_churn", order=2, calls=2, stochastic=True, options=CHURN
    ),
    "restart": SamplerFacts(
        "ldm.diffusion.samplers.stochastic:restart", order=2, calls=2, stochastic=True, options=RESTART
    ),
    "consistency": SamplerFacts(
        "ldm.diffusion.samplers.stochastic:consistency",
        order=1,
        calls=1,
        stochastic=True,
        consistency=True,
        options=SECOND,
    ),
}


@dataclass(frozen=True)
class SamplerOption:
    """A number that some samplers take, whose default is in the signature of each."""

    meaning: str
    low: float = 0.0
    high: float = math.inf
    whole: bool = False  # whether it is a count


SAMPLER_OPTIONS = {
    "eta": SamplerOption("share of fresh noise in a step of ddim (0) and dpm++2m_sde (1), 0 to 1", high=1.0),
    "churn": SamplerOption("noise that heun_churn adds over all steps, EDM's S_churn (40)"),
    "churn_min": SamplerOption("lowest noise level at which it does (0.1)"),
    "churn_max": SamplerOption("highest noise level at which it does (100)"),
    "churn_noise": SamplerOption("standard deviation of that noise (1.003)"),
    "gaussian_start": SamplerOption("noise level at which gaussian and gaussian2m begin (the highest)"),
    "restarts": SamplerOption("how often restart goes a part of the way again (2)", whole=True),
    "restart_min": SamplerOption("where that part ends (0.1)"),
    "restart_max": SamplerOption("where it begins (0.6)"),
    "second_sigma": SamplerOption("noise level of the second step of consistency (1.2, of two 0.8)"),
}

# How conditions that are no classes are embedded, by kind; a class has a table of embeddings.
ATTRIBUTE_EMBEDDINGS = {
    "number": Part("ldm.diffusion.attribute_embeddings:NumberEmbedding"),
    "text": Part("ldm.diffusion.attribute_embeddings:TextEmbedding"),
}

DENOISER_NETWORKS = {
    "unet": Part("ldm.diffusion.networks.unet:UNet"),
    "dit": Part("ldm.diffusion.networks.dit:DiT"),
    "edm2": Part("ldm.diffusion.networks.edm2:PreservingUNet"),
    "unet2d": Part("ldm.diffusion.networks.unet2d:DiffusersUNet"),
}


@dataclass(frozen=True)
class LevelsConfig(Checked):
    """What the U-Nets have in common; each width after the first halves the latent."""

    kind: str = ""
    widths: tuple[Annotated[int, AtLeast(1)], ...] = (64, 128)  # channels per level
    blocks: Annotated[int, AtLeast(1)] = 2  # residual blocks per level on the way down, and as many on the way up
    attention: tuple[int, ...] = (1,)  # levels with self-attention, 0 being the highest resolution
    head_channels: Annotated[int, AtLeast(1)] = 32  # channels per attention head
    dropout: Annotated[float, Between(0, 1, high_is_open=True)] = 0.0  # dropout probability inside residual blocks

    PRESETS: ClassVar = {
        "S": {"widths": (64, 128), "blocks": 2, "attention": (1,)},
        "M": {"widths": (128, 256, 256), "blocks": 2, "attention": (1, 2)},
        "L": {"widths": (256, 512, 512), "blocks": 2, "attention": (1, 2)},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ValueError("widths must be one or more numbers, not none")
        if not set(self.attention) <= set(range(len(self.widths))):
            raise ValueError(f"attention must name levels from 0 to {len(self.widths) - 1}, not {self.attention}")


@dataclass(frozen=True)
class UNetConfig(LevelsConfig):
    """Our small U-Net; each width after the first halves the latent."""

    kind: Literal["unet"] = "unet"
    qk_norm: bool = False  # RMS norm of queries and keys, which keeps attention stable at large learning rates


@dataclass(frozen=True)
class DiTConfig(Checked):
    """A diffusion transformer: a ViT whose layer norms are scaled, shifted and gated by the condition (adaLN-zero)."""

    kind: Literal["dit"] = "dit"
    patch: Annotated[int, AtLeast(1)] = 2  # side of a token's square of the latent, whose height and width it divides
    width: Annotated[int, AtLeast(1)] = 192  # channels of a token, a multiple of 4 * heads
    depth: Annotated[int, AtLeast(1)] = 12  # blocks
    heads: Annotated[int, AtLeast(1)] = 3  # attention heads
    qk_norm: bool = True  # RMS norm of queries and keys, which keeps attention stable at large learning rates
    positions: Literal["rotary", "sin-cos"] = "rotary"  # of rows and columns: in the attention, or added to the tokens
    dropout: Annotated[float, Between(0, 1, high_is_open=True)] = 0.0  # dropout probability inside the MLPs

    PRESETS: ClassVar = {
        "Ti": {"width": 192, "depth": 12, "heads": 3},
        "S": {"width": 384, "depth": 12, "heads": 6},
        "B": {"width": 768, "depth": 12, "heads": 12},
        "L": {"width": 1024, "depth": 24, "heads": 16},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width must be a multiple of 4 * heads, for cosine and sine of row and column, not {self.width} with"
                f" {self.heads} heads"
            )


@dataclass(frozen=True)
class EDM2Config(LevelsConfig):
    """A magnitude-preserving U-Net (EDM2): a learning rate is the relative change of its weights, 1e-2 for a start."""

    kind: Literal["edm2"] = "edm2"


@dataclass(frozen=True)
class UNet2DConfig(LevelsConfig):
    """diffusers' UNet2DModel; with a scalar skip and no condition but a class, stock diffusers opens its runs."""

    kind: Literal["unet2d"] = "unet2d"
    widths: tuple[Annotated[int, AtLeast(2)], ...] = (64, 128)  # channels per level; multiples of norm_groups
    blocks: Annotated[int, AtLeast(1)] = 2  # residual blocks per level on the way down, and one more on the way up
    norm_groups: Annotated[int, AtLeast(1)] = 32  # groups of the group norms

    def __post_init__(self) -> None:
        super().__post_init__()
        for width in self.widths:
            if width % self.norm_groups or width % self.head_channels:
                raise ValueError(
                    f"widths must be multiples of norm_groups {self.norm_groups} and of head_channels"
                    f" {self.head_channels}, not {width}"
                )


DenoiserNetworkConfig: TypeAlias = UNetConfig | DiTConfig | EDM2Config | UNet2DConfig


@dataclass(frozen=True)
class ScalarSkipConfig(Checked):
    """c_skip(σ) times the noisy latent."""

    kind: Literal["scalar"] = "scalar"


@dataclass(frozen=True)
class GaussianSkipConfig(Checked):
    """The best linear denoiser of the training latents, from their mean and principal components."""

    kind: Literal["gaussian"] = "gaussian"
    rank: Annotated[int, AtLeast(0)] | None = (
        None  # principal components; null: all of latents of up to 1,024 numbers, 512 of larger ones
    )


SkipConfig: TypeAlias = ScalarSkipConfig | GaussianSkipConfig


@dataclass(frozen=True)
class DenoiserConfig(Checked):
    """D(x; σ) = skip + c_out F(c_in x; c_noise), Karras et al. 2022, equation 7."""

    network: DenoiserNetworkConfig = field(default_factory=UNetConfig)
    parametrization: Annotated[str, OneOf(PARAMETRIZATIONS)] = "edm"  # what F predicts; edm is -v at sigma_data 1
    skip: SkipConfig = field(default_factory=ScalarSkipConfig)  # what is known of the answer without F

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip.kind == "gaussian" and self.parametrization != "edm":
            raise ValueError(
                f"skip.kind gaussian is a skip of parametrization edm, not of {self.parametrization}: choose edm, or"
                " skip.kind scalar"
            )


@dataclass(frozen=True)
class SamplingConfig(Checked):
    """How a trained denoiser is sampled: the grid of noise levels (Karras et al. 2022, equation 5), and a sampler."""

    sigma_min: Annotated[float, Above(0)] = 0.01  # the last level before 0; latents have unit variance
    sigma_max: Annotated[float, Above(0)] = 40.0  # about 40, 80, 160 for latents 8, 16, 32 pixels wide
    rho: Annotated[float, Above(0)] = 7.0  # 1 spaces the levels evenly; the larger, the more of them are small
    sampler: str = "heun"  # of docs/samplers.md, where none is asked for; consistency for objective.kind consistency
    steps: Annotated[int, AtLeast(1)] = 18  # where no number of them is asked for

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, not {self.sigma_min} and {self.sigma_max}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler}")
