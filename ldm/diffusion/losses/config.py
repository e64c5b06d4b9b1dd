"""Config of the training loss: denoising or consistency, noise levels and weighting, with the tables to choose from.

Constants are in units of σ_data = 1, as latents have unit variance.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from ldm.config.bounds import Above, AtLeast, Between, Checked
from ldm.config.parts import Part

NOISE_DISTRIBUTIONS = {
    "log-normal": Part("ldm.diffusion.losses.noise_distribution:LogNormal"),
    "log-uniform": Part("ldm.diffusion.losses.noise_distribution:LogUniform"),
    "log-logistic": Part("ldm.diffusion.losses.noise_distribution:LogLogistic"),
    "ddpm": Part("ldm.diffusion.losses.noise_distribution:DDPM"),
    "cosine": Part("ldm.diffusion.losses.noise_distribution:Cosine"),
}


@dataclass(frozen=True)
class WeightingFacts(Part):
    """What is known of a weighting."""

    formula: str  # its weight on ‖D − x‖², for data of unit variance
    learned: bool = False  # whether the weight is divided by e^u(σ), which is learned beside the denoiser


WEIGHTINGS = {
    "prediction": WeightingFacts("ldm.diffusion.losses.weighting:prediction", formula="1 / c_out²"),
    "edm": WeightingFacts("ldm.diffusion.losses.weighting:edm", formula="(1 + σ²) / σ²"),
    "eps": WeightingFacts("ldm.diffusion.losses.weighting:eps", formula="1 / σ²"),
    "flow": WeightingFacts("ldm.diffusion.losses.weighting:flow", formula="(1 + σ)² / σ²"),
    "uniform": WeightingFacts("ldm.diffusion.losses.weighting:uniform", formula="1"),
    "min-snr": WeightingFacts("ldm.diffusion.losses.weighting:min_snr", formula="min(1 / σ², gamma)"),
    "soft-min-snr": WeightingFacts("ldm.diffusion.losses.weighting:soft_min_snr", formula="1 / (σ² + 1 / gamma)"),
    "learned": WeightingFacts("ldm.diffusion.losses.weighting:prediction", formula="1 / (c_out² e^u(σ))", learned=True),
}


Shift: TypeAlias = Annotated[float, Above(0)]


@dataclass(frozen=True)
class LogNormalConfig(Checked):
    """ln σ is normal: the noise distribution of EDM; logit-normal t of flow matching is the same thing."""

    kind: Literal["log-normal"] = "log-normal"
    mean: float = -0.4  # of ln σ
    std: Annotated[float, Above(0)] = 1.2  # of ln σ
    shift: Shift = 1.0  # multiplies σ, as a shift of t does: ln shift is added to the mean


@dataclass(frozen=True)
class LogUniformConfig(Checked):
    """ln σ is uniform between two bounds."""

    kind: Literal["log-uniform"] = "log-uniform"
    low: Annotated[float, Above(0)] = 0.01  # smallest σ
    high: Annotated[float, Above(0)] = 80.0  # largest σ

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")


@dataclass(frozen=True)
class LogLogisticConfig(Checked):
    """t = σ / (1 + σ) is uniform: the noise distribution of rectified flow."""

    kind: Literal["log-logistic"] = "log-logistic"
    shift: Shift = 1.0  # multiplies σ, as a shift of t does


@dataclass(frozen=True)
class DDPMConfig(Checked):
    """The 1,000 steps of a discrete schedule, equally likely: σ² = (1 − ᾱ) / ᾱ of diffusers' alphas_cumprod."""

    kind: Literal["ddpm"] = "ddpm"
    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"  # beta_schedule, as diffusers names it
    beta_start: Annotated[float, Between(0, 1, low_is_open=True, high_is_open=True)] = 1e-4  # squaredcos has none
    beta_end: Annotated[float, Between(0, 1, low_is_open=True, high_is_open=True)] = 0.02  # squaredcos has none

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta_start < self.beta_end:
            raise ValueError(f"beta_start must be below beta_end, not {self.beta_start} and {self.beta_end}")


@dataclass(frozen=True)
class CosineConfig(Checked):
    """The cosine schedule, σ = tan(π t / 2) for uniform t, whose shift may change from low to high noise."""

    kind: Literal["cosine"] = "cosine"
    low: Annotated[float, Above(0)] = 0.001  # smallest σ before the shift
    high: Annotated[float, Above(0)] = 1000.0  # largest σ before the shift
    shift_low: Shift = 1.0  # multiplies σ at t = 0: side of the latent / noise_d_low
    shift_high: Shift = 1.0  # multiplies σ at t = 1, the shift between being interpolated: side / noise_d_high

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        if not self.shift_low / self.shift_high <= 16:
            raise ValueError(
                f"shift_low must be at most 16 times shift_high, not {self.shift_low} and {self.shift_high}"
            )


NoiseDistributionConfig: TypeAlias = LogNormalConfig | LogUniformConfig | LogLogisticConfig | DDPMConfig | CosineConfig


@dataclass(frozen=True)
class PredictionWeightingConfig(Checked):
    """Unit weight on what the network predicts: (1 + σ²) / σ² of edm, 1 / σ² of eps, 1 of x0, (1 + σ)² / σ² of flow."""

    kind: Literal["prediction"] = "prediction"


@dataclass(frozen=True)
class EDMWeightingConfig(Checked):
    """(1 + σ²) / σ², whatever is predicted: that of EDM and of v."""

    kind: Literal["edm"] = "edm"


@dataclass(frozen=True)
class EpsWeightingConfig(Checked):
    """1 / σ², the signal-to-noise ratio: the simple loss of DDPM."""

    kind: Literal["eps"] = "eps"


@dataclass(frozen=True)
class FlowWeightingConfig(Checked):
    """(1 + σ)² / σ²: the velocity loss of flow matching."""

    kind: Literal["flow"] = "flow"


@dataclass(frozen=True)
class UniformWeightingConfig(Checked):
    """1: the squared error of the clean latent."""

    kind: Literal["uniform"] = "uniform"


@dataclass(frozen=True)
class MinSNRWeightingConfig(Checked):
    """min(1 / σ², gamma): Min-SNR (Hang et al. 2023)."""

    kind: Literal["min-snr"] = "min-snr"
    gamma: Annotated[float, Above(0)] = 5.0  # largest weight


@dataclass(frozen=True)
class SoftMinSNRWeightingConfig(Checked):
    """1 / (σ² + 1 / gamma): Soft-Min-SNR (Crowson et al. 2024)."""

    kind: Literal["soft-min-snr"] = "soft-min-snr"
    gamma: Annotated[float, Above(0)] = 4.0  # the weight that small σ approach


@dataclass(frozen=True)
class LearnedWeightingConfig(Checked):
    """1 / (c_out² e^u(σ)), u being learned: it becomes the log of the loss, and every σ counts the same (EDM2)."""

    kind: Literal["learned"] = "learned"
    channels: Annotated[int, AtLeast(1)] = 128  # Fourier features of ln σ / 4 that u is linear in
    lr: Annotated[float, Above(0)] = 0.01  # learning rate of u, constant


WeightingConfig: TypeAlias = (
    PredictionWeightingConfig
    | EDMWeightingConfig
    | EpsWeightingConfig
    | FlowWeightingConfig
    | UniformWeightingConfig
    | MinSNRWeightingConfig
    | SoftMinSNRWeightingConfig
    | LearnedWeightingConfig
)


@dataclass(frozen=True)
class DenoisingObjectiveConfig(Checked):
    """The multi-scale denoising loss: E over σ and noise of weight(σ) (D(x + σ n; σ) - x)²."""

    kind: Literal["denoising"] = "denoising"
    noise_distribution: NoiseDistributionConfig = field(default_factory=LogNormalConfig)
    weighting: WeightingConfig = field(default_factory=PredictionWeightingConfig)
    condition_dropout: Annotated[float, Between(0, 1)] = (
        0.1  # how often all conditions (the class) are left out, and of several each by itself, for guidance
    )


@dataclass(frozen=True)
class ConsistencyObjectiveConfig(Checked):
    """Consistency distillation or tuning of a finished denoiser (--from), for samples in one to four steps."""

    kind: Literal["consistency"] = "consistency"
    noise_distribution: NoiseDistributionConfig = field(default_factory=lambda: LogNormalConfig(mean=-0.4, std=2.0))
    weighting: Literal["gap", "edm", "prediction"] = "gap"  # of the norm: 1 / (σ − r), (1 + σ²) / σ², or 1 / c_out
    paths: Literal["data", "denoiser"] = "data"  # x + σ n and x + r n (ECT), or a step of the denoiser of --from
    stages: Annotated[int, AtLeast(1)] = 8  # equal shares of the steps, from one to the next of which r nears σ
    shrink: Annotated[float, Above(1)] = 2.0  # what (σ − r) / σ, small at first too, is divided by in each stage
    guidance: float = 1.0  # weight of classifier-free guidance that is baked in; 1: none
    condition_dropout: Annotated[float, Between(0, 1)] = 0.0  # how often the condition (the class) is left out

    @property
    def needs_guide(self) -> bool:
        """Whether the denoiser that tuning began with is asked in every step."""
        return self.guidance != 1 or self.paths == "denoiser"


ObjectiveConfig: TypeAlias = DenoisingObjectiveConfig | ConsistencyObjectiveConfig
