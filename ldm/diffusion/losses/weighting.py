"""Weightings of the denoising loss over noise levels, fixed or learned.

A weighting is given as what the error D − x is divided by before it is squared, weight^−½: of 1 / c_out² that is c_out.
The weights that go with one parametrization (EDM's with v, DDPM's with ε, that of flow matching with the velocity) may
be had with any other.
"""

import torch
from torch import Tensor, nn

from ldm.batch import Losses
from ldm.diffusion.denoiser import EDM, Denoiser
from ldm.diffusion.losses.config import (
    WEIGHTINGS,
    LearnedWeightingConfig,
    MinSNRWeightingConfig,
    SoftMinSNRWeightingConfig,
    WeightingConfig,
)
from ldm.nn.embedding import FourierFeatures
from ldm.shapes import NoiseLevels, Scalars


def error_scale(config: WeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """weight(σ)^−½ of a weighting without what is learned of it; the shape is that of `sigma`."""
    scale: Tensor = WEIGHTINGS[config.kind].load()(config, denoiser, sigma)
    return scale


def prediction(config: WeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """c_out: the weight 1 / c_out² leaves the squared error of the network's own output (Karras et al. 2022, eq. 8)."""
    return denoiser.c_out(sigma)


def edm(config: WeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """σ / √(1 + σ²): EDM's c_out, for a denoiser of any parametrization and with any skip."""
    return EDM.c_out(sigma, 1.0)


def eps(config: WeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """σ, as the error of the noise is that of the clean latent over −σ (Ho et al. 2020)."""
    return sigma


def flow(config: WeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """t = σ / (1 + σ), as the error of the velocity is that of the clean latent over −t (Lipman et al. 2023)."""
    return sigma / (1 + sigma)


def uniform(config: WeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """1 at every noise level."""
    return torch.ones_like(sigma)


def min_snr(config: MinSNRWeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """The larger of σ and γ^−½ (Hang et al. 2023)."""
    return sigma.clamp_min(config.gamma**-0.5)


def soft_min_snr(config: SoftMinSNRWeightingConfig, denoiser: Denoiser, sigma: Tensor) -> Tensor:
    """√(σ² + 1/γ) (Crowson et al. 2024, section 3.3; there γ is 4)."""
    return (sigma**2 + 1 / config.gamma).sqrt()


class Uncertainty(nn.Module):
    """u(σ), the learned logarithm of the loss at each noise level (Karras et al. 2024, EDM2).

    Linear in Fourier features of ln(σ) / 4, and 0 at the start.
    """

    def __init__(self, config: LearnedWeightingConfig):
        super().__init__()
        self.lr = config.lr
        self.features = FourierFeatures(config.channels)
        self.linear = nn.Linear(config.channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, sigma: NoiseLevels) -> Scalars:
        features = self.features(sigma.log() / 4).to(self.linear.weight.dtype)
        with torch.autocast(sigma.device.type, enabled=False):  # half precision is too coarse for a logarithm
            u: Scalars = self.linear(features / self.features.channels**0.5).squeeze(1)
        return u


class UncertaintyObjective(nn.Module):
    """E e^−u(σ) loss + u(σ), whose minimum is u = ln E[loss | σ] (Kendall et al. 2018, EDM2).

    It trains u alone: the denoiser's gradient of that same sum, e^−u loss, is in `DenoisingObjective`.
    """

    def __init__(self, uncertainty: Uncertainty):
        super().__init__()
        self.uncertainty = uncertainty

    def forward(self, sigma: NoiseLevels, losses: Scalars) -> Losses:
        u = self.uncertainty(sigma)
        loss = ((-u).exp() * losses.detach() + u).mean()
        return Losses(loss, {"uncertainty": loss})


def create_uncertainty(config: WeightingConfig) -> Uncertainty | None:
    """u(σ) of the learned weighting; None of any other."""
    return Uncertainty(config) if isinstance(config, LearnedWeightingConfig) else None
