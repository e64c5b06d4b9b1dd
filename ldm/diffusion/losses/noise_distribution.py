"""Distributions of noise levels in training: log-normal, log-uniform, log-logistic, DDPM's discrete ones, cosine."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.losses.config import (
    NOISE_DISTRIBUTIONS,
    CosineConfig,
    DDPMConfig,
    LogLogisticConfig,
    LogNormalConfig,
    LogUniformConfig,
    NoiseDistributionConfig,
)
from ldm.randomness import StepRandom
from ldm.shapes import NoiseLevels

BINS = 1000  # of equal probability, in which a density without a formula is constant: the steps of DDPM


class NoiseDistribution:
    """A distribution of σ, known by its quantiles.

    A new one is a class with `quantile`, and a line in `ldm.diffusion.losses.config.NOISE_DISTRIBUTIONS`.
    """

    def __init__(self, config: Any):
        self.config = config

    def quantile(self, share: Tensor) -> NoiseLevels:
        """The σ below which lies this share of all levels, from 0 to 1."""
        raise NotImplementedError

    def sample(self, count: int, generator: torch.Generator) -> NoiseLevels:
        """`count` independent noise levels, float32 on the CPU."""
        return self.quantile(torch.rand(count, generator=generator)).float()

    def draw(self, rng: StepRandom, device: torch.device | str = "cpu") -> NoiseLevels:
        """The noise levels of a part of a global batch, float32 on a device."""
        return self.quantile(rng.uniform("sigma", device=device)).float()

    def density(self, sigma: NoiseLevels) -> Tensor:
        """p(ln σ), the probability per unit of ln σ, in float64."""
        middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        logs = self.quantile(middles).double().log()
        place = torch.searchsorted(logs, sigma.double().log())
        width = logs[place.clamp(1, BINS - 1)] - logs[place.clamp(1, BINS - 1) - 1]
        return torch.where((place > 0) & (place < BINS), 1 / (BINS * width), 0.0)


def create_noise_distribution(config: NoiseDistributionConfig) -> NoiseDistribution:
    """The distribution that a config describes."""
    distribution: NoiseDistribution = NOISE_DISTRIBUTIONS[config.kind].load()(config)
    return distribution


def sample_sigmas(config: NoiseDistributionConfig, count: int, generator: torch.Generator) -> NoiseLevels:
    """`count` independent noise levels to train on, float32 on the CPU."""
    return create_noise_distribution(config).sample(count, generator)


class LogNormal(NoiseDistribution):
    """ln σ = mean + ln shift + std · n for a standard normal n (Karras et al. 2022, table 1)."""

    config: LogNormalConfig

    @property
    def mean(self) -> float:
        """Of ln σ."""
        return self.config.mean + math.log(self.config.shift)

    def quantile(self, share: Tensor) -> NoiseLevels:
        return (self.mean + self.config.std * torch.special.ndtri(share)).exp()

    def sample(self, count: int, generator: torch.Generator) -> NoiseLevels:
        return (self.mean + self.config.std * torch.randn(count, generator=generator)).exp()

    def draw(self, rng: StepRandom, device: torch.device | str = "cpu") -> NoiseLevels:
        return (self.mean + self.config.std * rng.normal("sigma", device=device)).exp().float()

    def density(self, sigma: NoiseLevels) -> Tensor:
        standard = (sigma.double().log() - self.mean) / self.config.std
        return (-(standard**2) / 2).exp() / (math.sqrt(2 * math.pi) * self.config.std)


class LogUniform(NoiseDistribution):
    """σ = low · (high / low)^u for u uniform between 0 and 1."""

    config: LogUniformConfig

    def quantile(self, share: Tensor) -> NoiseLevels:
        low, high = self.config.low, self.config.high
        return low * (high / low) ** share

    def density(self, sigma: NoiseLevels) -> Tensor:
        sigma, low, high = sigma.double(), self.config.low, self.config.high
        return torch.where((sigma >= low) & (sigma <= high), 1 / math.log(high / low), 0.0)


class LogLogistic(NoiseDistribution):
    """σ = shift · t / (1 − t) for uniform t: rectified flow (Liu et al. 2023; the shift, Esser et al. 2024)."""

    config: LogLogisticConfig

    def quantile(self, share: Tensor) -> NoiseLevels:
        share = share.double() * (1 - 2**-24) + 2**-25  # neither 0 nor 1, where σ is 0 or infinite
        return self.config.shift * share / (1 - share)

    def density(self, sigma: NoiseLevels) -> Tensor:
        t = sigma.double() / (self.config.shift + sigma.double())
        return t * (1 - t)


class DDPM(NoiseDistribution):
    """One of the 1,000 noise levels of a discrete schedule, all equally likely (Ho et al. 2020)."""

    config: DDPMConfig

    def __init__(self, config: DDPMConfig):
        super().__init__(config)
        self.levels = ddpm_sigmas(config.schedule, config.beta_start, config.beta_end)

    def quantile(self, share: Tensor) -> NoiseLevels:
        sigmas = self.levels
        if sigmas.device != share.device:
            sigmas = self.levels = sigmas.to(share.device)  # once: a copy waits for the device
        return sigmas[(share * len(sigmas)).long().clamp_max(len(sigmas) - 1)]


@cache
def ddpm_sigmas(schedule: str, beta_start: float, beta_end: float) -> Tensor:
    """σ = √((1 − ᾱ) / ᾱ) at each step of a schedule of diffusers, from the smallest, in float64.

    From diffusers' own alphas_cumprod, in float32 as it is, so that its schedulers know the very same levels.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    made = DDPMScheduler(BINS, beta_start=beta_start, beta_end=beta_end, beta_schedule=schedule)
    alphas: Tensor = made.alphas_cumprod.double()
    return ((1 - alphas) / alphas).sqrt()


class Cosine(NoiseDistribution):
    """ln σ = ln tan θ(t) + ln shift(t), θ and ln shift linear in t, uniform between 0 and 1.

    Without a shift the cosine schedule (Nichol and Dhariwal 2021), with two equal ones the shifted cosine, with others
    the interpolated one (Hoogeboom et al. 2023), between `low` and `high`, which are cut off before the shift.
    """

    config: CosineConfig

    def quantile(self, share: Tensor) -> NoiseLevels:
        config, t = self.config, share.double()
        lowest, highest = math.atan(config.low), math.atan(config.high)
        shift = (1 - t) * math.log(config.shift_low) + t * math.log(config.shift_high)
        return (lowest + t * (highest - lowest)).tan() * shift.exp()
