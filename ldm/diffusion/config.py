"""What a person can say about the denoiser, the noise it is trained on, and sampling."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class UNetConfig:
    """Our small U-Net; each width after the first halves the latent."""

    kind: Literal["unet"] = "unet"
    widths: tuple[int, ...] = (64, 128)  # channels per level
    blocks: int = 2  # residual blocks per level on the way down, and as many on the way up
    attention: tuple[int, ...] = (1,)  # levels with self-attention, 0 being the highest resolution
    head_channels: int = 32  # channels per attention head
    dropout: float = 0.0  # dropout probability inside residual blocks

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more positive numbers, not {self.widths}")
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {self.blocks}")
        if not set(self.attention) <= set(range(len(self.widths))):
            raise ValueError(f"attention must name levels from 0 to {len(self.widths) - 1}, not {self.attention}")
        if self.head_channels < 1:
            raise ValueError(f"head_channels must be at least 1, not {self.head_channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")


@dataclass(frozen=True)
class DenoiserConfig:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), Karras et al. 2022, equation 7."""

    network: UNetConfig = field(default_factory=UNetConfig)
    parametrization: Literal["edm", "x0", "eps", "flow"] = "edm"  # what F predicts; edm is -v at sigma_data 1


@dataclass(frozen=True)
class LogNormalConfig:
    """ln sigma is normal: the training density of EDM; logit-normal t of flow matching is the same thing."""

    kind: Literal["log-normal"] = "log-normal"
    mean: float = -0.4  # of ln sigma
    std: float = 1.2  # of ln sigma

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std must be positive, not {self.std}")


@dataclass(frozen=True)
class LogUniformConfig:
    """ln sigma is uniform between two bounds."""

    kind: Literal["log-uniform"] = "log-uniform"
    low: float = 0.01  # smallest sigma
    high: float = 80.0  # largest sigma

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"low and high must satisfy 0 < low < high, not {self.low} and {self.high}")


@dataclass(frozen=True)
class DenoisingObjectiveConfig:
    """The multi-scale denoising loss: E over sigma and noise of weight(sigma) (D(x + sigma n; sigma) - x)^2."""

    density: LogNormalConfig | LogUniformConfig = field(default_factory=LogNormalConfig)
    condition_dropout: float = 0.1  # probability that a label is replaced by 'no label', for guidance

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise ValueError(f"condition_dropout must be between 0 and 1, not {self.condition_dropout}")


@dataclass(frozen=True)
class SamplingConfig:
    """The grid of noise levels from which a trained denoiser is sampled (Karras et al. 2022, equation 5)."""

    sigma_min: float = 0.01  # the last level before 0; latents have unit variance
    sigma_max: float = 40.0  # about 40, 80, 160 for latents 8, 16, 32 pixels wide
    rho: float = 7.0  # 1 spaces the levels evenly; the larger, the more of them are small

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            given = f"{self.sigma_min} and {self.sigma_max}"
            raise ValueError(f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, not {given}")
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, not {self.rho}")
