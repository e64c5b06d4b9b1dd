"""The denoiser: a preconditioned network; parametrizations (prediction types): EDM (-v), x0, eps, flow (velocity)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.batch import Condition, ConditionSchema
from ldm.diffusion.conditioning import ConditionEmbedding
from ldm.diffusion.config import PARAMETRIZATIONS
from ldm.diffusion.gaussian import LatentGaussian
from ldm.diffusion.noise import broadcast_sigma
from ldm.errors import ConfigError
from ldm.shapes import Latents, NoiseLevels, Scalars


class Denoiser(nn.Module):
    """D(x; σ) = c_skip(σ) x + c_out(σ) F(c_in(σ) x, c_noise(σ), condition), the best guess of the clean tensor.

    Karras et al. 2022, equation 7: a preconditioned network. F is `network(scaled, noise_condition, vector, tokens)`:
    it keeps the shape of its first argument and is told the noise level as ln(σ) / 4, one number per sample, whatever
    the parametrization; `embedding` makes vector and tokens of the condition. `sigma_data` is the standard deviation
    of the clean data. Noise levels are positive: zero has no logarithm.

    With a `gaussian` the best linear denoiser takes the place of c_skip(σ) x, and the root of its mean squared error
    that of c_out(σ): EDM with a matrix for σ_data. With `consistency` D is a consistency function, which answers with
    where the path of x ends, and the Gaussian's own one takes that place.
    """

    def __init__(
        self,
        network: nn.Module,
        embedding: ConditionEmbedding | None = None,
        *,
        parametrization: str = "edm",
        sigma_data: float = 1.0,
        gaussian: LatentGaussian | None = None,
        consistency: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.embedding = embedding or ConditionEmbedding(ConditionSchema(), 0)
        self.parametrization: Parametrization = PARAMETRIZATIONS[parametrization].load()
        self.sigma_data = sigma_data
        self.gaussian, self.consistency = gaussian, consistency

    def forward(self, noisy: Latents, sigma: float | NoiseLevels, condition: Condition | None = None) -> Latents:
        """The denoised tensor, in float64 if `noisy` is and in float32 otherwise; no condition is the null one.

        `sigma` is one noise level, or one for each sample. The weights, or autocast, may lower the precision inside the
        network. Outside it nothing is lowered: where σ is small the answer is almost all `noisy`, and rounding that
        would cost more than the network can repair.
        """
        sigma = self.noise_levels(sigma, noisy)
        level = broadcast_sigma(sigma, noisy)
        vector, tokens = self.embedding(condition, sigma)
        scaled = (self.c_in(level) * noisy).to(self.network_dtype or level.dtype)
        vector, tokens = (None if each is None else each.to(scaled.dtype) for each in (vector, tokens))
        output: Tensor = self.network(scaled, sigma.log() / 4, vector, tokens)
        return self.skip(noisy, level) + self.c_out(level) * output.to(level.dtype)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network, in place; preconditioning stays as it is."""
        self.network.compile(*args, **kwargs)

    @property
    def network_dtype(self) -> torch.dtype | None:
        """The precision of the network's weights; None if it has none."""
        first = next(self.network.parameters(), None)
        return None if first is None else first.dtype

    def noise_levels(self, sigma: float | Tensor, noisy: Latents) -> NoiseLevels:
        """One noise level for each sample; ConfigError for another number of them, or for one that is not positive.

        Levels that lie on an accelerator are looked at only by who can wait for them: it would stall a training step.
        """
        if not torch.is_tensor(sigma) or (sigma.device.type == "cpu" and not self.training):
            check_positive(sigma)
        sigma = torch.as_tensor(sigma).to(noisy.device, torch.promote_types(noisy.dtype, torch.float32))
        if sigma.numel() not in (1, len(noisy)):
            raise ConfigError(
                f"sigma has {sigma.numel()} noise levels for {len(noisy)} samples: give 1 or {len(noisy)}"
            )
        return sigma.reshape(-1).expand(len(noisy))

    def score(self, noisy: Latents, sigma: float | NoiseLevels, condition: Condition | None = None) -> Latents:
        """∇ log p_σ(noisy) = (D(noisy; σ) − noisy) / σ², the score of the data smoothed by noise of level σ.

        Exact where D is the posterior mean E[clean | noisy] (Robbins 1956, Vincent 2011).
        """
        denoised: Tensor = self(noisy, sigma, condition)
        return (denoised - noisy) / broadcast_sigma(self.noise_levels(sigma, noisy), noisy) ** 2

    def target(self, noisy: Latents, sigma: NoiseLevels, clean: Latents) -> Latents:
        """What the network must put out for D(noisy; σ) to equal `clean`."""
        level = broadcast_sigma(sigma, noisy)
        return (clean - self.skip(noisy, level)) / self.c_out(level)

    def loss_weight(self, sigma: NoiseLevels) -> Scalars:
        """1 / c_out², the weight on ‖D − clean‖² that leaves ‖F − target‖² unweighted, one value per sample."""
        return self.c_out(sigma) ** -2

    def skip(self, noisy: Latents, level: Tensor) -> Latents:
        """What goes into the answer beside the network, for noise levels that multiply `noisy` sample by sample."""
        if self.gaussian is not None:
            answer = self.gaussian.path_end if self.consistency else self.gaussian.denoise
            return answer(noisy.to(level.dtype), level)
        return self.c_skip(level) * noisy

    def c_skip(self, sigma: Tensor) -> Tensor:
        """The share of the noisy tensor that goes straight into the answer."""
        return self.parametrization.c_skip(sigma, self.sigma_data)

    def c_out(self, sigma: Tensor) -> Tensor:
        """The scale of the network's contribution to the answer."""
        if self.gaussian is not None:
            return self.gaussian.c_out(sigma)
        return self.parametrization.c_out(sigma, self.sigma_data)

    def c_in(self, sigma: Tensor) -> Tensor:
        """The scale of the network's input."""
        return self.parametrization.c_in(sigma, self.sigma_data)


def check_positive(sigma: float | Tensor) -> None:
    """Raise ConfigError for a noise level that is not above 0, which a timestep may be: a network is told ln σ."""
    if torch.compiler.is_compiling():
        return
    lowest = float(torch.as_tensor(sigma).min())
    if not lowest > 0:
        raise ConfigError(
            f"sigma {lowest:g} is not above 0: it is a noise level (as in a scheduler's `sigmas`), and not a timestep"
        )


Coefficient = Callable[[Tensor, float], Tensor]  # of σ and sigma_data


@dataclass(frozen=True)
class Parametrization:
    """What the network predicts, as the three coefficients that make D of it."""

    c_skip: Coefficient
    c_out: Coefficient
    c_in: Coefficient

    def __reduce__(self) -> str | tuple[Any, ...]:
        """One of those below by its name: their functions have none to be found by when a denoiser is pickled."""
        name = next((name for name, value in globals().items() if value is self), None)
        return name or (type(self), (self.c_skip, self.c_out, self.c_in))


def unit_variance(sigma: Tensor, sigma_data: float) -> Tensor:
    """c_in = 1 / √(σ² + σ_data²) gives the network's input unit variance."""
    return (sigma**2 + sigma_data**2) ** -0.5


# The mixture of signal and noise whose target has unit variance at every σ and whose c_out is the smallest possible
# (Karras et al. 2022, table 1). At σ_data = 1 it is −v of Salimans and Ho 2022.
EDM = Parametrization(
    c_skip=lambda sigma, sigma_data: sigma_data**2 / (sigma**2 + sigma_data**2),
    c_out=lambda sigma, sigma_data: (sigma**-2 + sigma_data**-2) ** -0.5,
    c_in=unit_variance,
)

# The clean tensor, in units of σ_data.
X0 = Parametrization(
    c_skip=lambda sigma, sigma_data: torch.zeros_like(sigma),
    c_out=lambda sigma, sigma_data: torch.full_like(sigma, sigma_data),
    c_in=unit_variance,
)

# The unit Gaussian noise (Ho et al. 2020).
EPS = Parametrization(
    c_skip=lambda sigma, sigma_data: torch.ones_like(sigma),
    c_out=lambda sigma, sigma_data: -sigma,
    c_in=unit_variance,
)

# The velocity noise − clean of the path (1 − t) clean + t noise, where σ = t / (1 − t) (Lipman et al. 2023, with their
# time reversed). The input is that path and its scale is the path's, whatever σ_data.
FLOW = Parametrization(
    c_skip=lambda sigma, sigma_data: 1 / (1 + sigma),
    c_out=lambda sigma, sigma_data: -sigma / (1 + sigma),
    c_in=lambda sigma, sigma_data: 1 / (1 + sigma),
)
