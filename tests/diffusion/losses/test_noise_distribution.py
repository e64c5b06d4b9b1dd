"""Distributions of noise levels: densities that integrate to one, draws with the stated quantiles, published forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ldm.config.reader import sections_of
from ldm.diffusion.losses.config import (
    NOISE_DISTRIBUTIONS,
    CosineConfig,
    DDPMConfig,
    LogLogisticConfig,
    LogNormalConfig,
    LogUniformConfig,
    NoiseDistributionConfig,
)
from ldm.diffusion.losses.noise_distribution import create_noise_distribution, sample_sigmas
from ldm.randomness import generator

COUNT = 200_000
SHARES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
CONFIGS = [
    *(config() for config in sections_of(NoiseDistributionConfig)),
    LogNormalConfig(mean=0.3, std=0.7, shift=3.0),
    LogLogisticConfig(shift=3.0),
    DDPMConfig("ddpm", "scaled_linear", 0.00085, 0.012),
    DDPMConfig("ddpm", "squaredcos_cap_v2"),
    CosineConfig(shift_low=8.0, shift_high=1.0),
]


def names(config: NoiseDistributionConfig) -> str:
    return " ".join(str(value) for value in vars(config).values())


@pytest.mark.parametrize("config", sections_of(NoiseDistributionConfig))
def test_noise_levels_are_positive_float32_and_a_function_of_the_generator(config: type) -> None:
    first, again, other = (sample_sigmas(config(), 1000, generator(seed, "sigma")) for seed in (0, 0, 1))
    assert first.dtype == torch.float32 and first.shape == (1000,) and bool((first > 0).all())
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_noise_distribution_of_the_table_has_a_config() -> None:
    assert {config.kind for config in sections_of(NoiseDistributionConfig)} == set(NOISE_DISTRIBUTIONS)


def test_the_logarithm_of_log_normal_noise_levels_has_the_stated_mean_and_std() -> None:
    logs = sample_sigmas(LogNormalConfig(mean=-0.7, std=1.3), COUNT, generator(0, "sigma")).double().log()
    assert abs(logs.mean() + 0.7) < 4 * 1.3 / math.sqrt(COUNT)
    assert abs(logs.std() - 1.3) < 4 * 1.3 / math.sqrt(2 * COUNT)
    assert abs(((logs - logs.mean()) / logs.std()).pow(4).mean() - 3) < 4 * math.sqrt(96 / COUNT)


def test_the_logarithm_of_log_uniform_noise_levels_is_even_between_the_bounds() -> None:
    logs = sample_sigmas(LogUniformConfig(low=0.1, high=20.0), COUNT, generator(0, "sigma")).double().log()
    low, high = math.log(0.1), math.log(20.0)
    quantiles = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert torch.allclose(logs.quantile(quantiles), low + quantiles * (high - low), atol=4 * 0.5 * 5.3 / COUNT**0.5)
    assert logs.min() >= low - 1e-6 and logs.max() <= high + 1e-6


def test_the_time_of_flow_matching_is_logit_normal_exactly_when_sigma_is_log_normal() -> None:
    sigma = sample_sigmas(LogNormalConfig(mean=-0.4, std=1.2), COUNT, generator(0, "sigma")).double()
    time = sigma / (1 + sigma)
    quantiles = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    logit_normal = torch.sigmoid(-0.4 + 1.2 * Normal(0, 1).icdf(quantiles))
    assert torch.allclose(time.quantile(quantiles), logit_normal, rtol=0, atol=0.01)
    standard = torch.randn(COUNT, generator=generator(0, "sigma")).double()
    assert torch.allclose(time, torch.sigmoid(-0.4 + 1.2 * standard), atol=1e-6)


def test_a_shift_of_time_adds_its_logarithm_to_the_mean_of_ln_sigma() -> None:
    shift = 3.0
    sigma = sample_sigmas(LogNormalConfig(mean=0.0, std=1.0), 1000, generator(0, "sigma")).double()
    time = sigma / (1 + sigma)
    shifted = shift * time / (1 + (shift - 1) * time)
    distribution = LogNormalConfig(mean=math.log(shift), std=1.0)
    expected = sample_sigmas(distribution, 1000, generator(0, "sigma")).double()
    assert torch.allclose(shifted / (1 - shifted), expected, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_a_density_integrates_to_one_up_to_its_outermost_thousandth(config: NoiseDistributionConfig) -> None:
    sigma = torch.logspace(-9, 9, 200_001, dtype=torch.float64)
    mass = torch.trapezoid(create_noise_distribution(config).density(sigma), sigma.log())
    assert abs(float(mass) - 1) < 2e-3


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_a_density_is_the_derivative_of_the_share_of_levels_below(config: NoiseDistributionConfig) -> None:
    distribution = create_noise_distribution(config)
    ends = distribution.quantile(torch.tensor([0.3, 0.7], dtype=torch.float64)).double()
    logs = torch.linspace(math.log(ends[0]), math.log(ends[1]), 20_001, dtype=torch.float64)
    between = torch.trapezoid(distribution.density(logs.exp()), logs)
    assert float(between) == pytest.approx(0.4, abs=2e-3)


@pytest.mark.parametrize("config", CONFIGS, ids=names)
def test_draws_have_the_quantiles_that_are_stated(config: NoiseDistributionConfig) -> None:
    """Within four standard deviations of an order statistic, in shares; a discrete level counts half."""
    distribution = create_noise_distribution(config)
    drawn = distribution.sample(COUNT, generator(0, "sigma")).double().sort().values
    stated = distribution.quantile(SHARES).double()
    below, upto = (torch.searchsorted(drawn, stated * (1 + off)) / COUNT for off in (-1e-6, 1e-6))
    assert bool(((below + upto) / 2 - SHARES).abs().max() < 4 * 0.5 / COUNT**0.5 + 1e-3)


@pytest.mark.parametrize("config", [LogNormalConfig, LogLogisticConfig])
def test_a_shift_multiplies_every_level(config: type) -> None:
    plain, shifted = (sample_sigmas(config(shift=shift), 1000, generator(0, "sigma")) for shift in (1.0, 3.0))
    assert torch.allclose(shifted, 3 * plain, rtol=1e-5)


def test_a_shift_adds_its_logarithm_to_the_mean_of_a_log_normal() -> None:
    shifted, moved = (
        sample_sigmas(config, 1000, generator(0, "sigma"))
        for config in (LogNormalConfig(mean=0.2, shift=3.0), LogNormalConfig(mean=0.2 + math.log(3.0)))
    )
    assert torch.equal(shifted, moved)


def test_the_time_of_rectified_flow_is_uniform_exactly_when_sigma_is_log_logistic() -> None:
    sigma = create_noise_distribution(LogLogisticConfig()).quantile(SHARES)
    assert torch.allclose(sigma / (1 + sigma), SHARES, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_discrete_levels_are_those_of_the_schedulers_of_diffusers(schedule: str) -> None:
    from diffusers import DDPMScheduler, EulerDiscreteScheduler

    config = DDPMConfig(schedule=schedule)
    options = {"beta_start": config.beta_start, "beta_end": config.beta_end, "beta_schedule": schedule}
    alphas = DDPMScheduler(1000, **options).alphas_cumprod.double()
    middles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    sigmas = create_noise_distribution(config).quantile(middles)
    assert torch.equal(sigmas, (1 / alphas - 1).sqrt()) or torch.allclose(sigmas, (1 / alphas - 1).sqrt(), rtol=1e-12)
    if schedule == "squaredcos_cap_v2":
        return
    theirs = torch.from_numpy(EulerDiscreteScheduler(1000, **options).sigmas[:-1].flip(0).double().numpy())
    assert torch.allclose(sigmas, theirs, rtol=1e-4)


def logsnr_of_cosine(t: Tensor, low: float, high: float) -> Tensor:
    """Hoogeboom et al. 2023, section 3.1, with bounds of log SNR."""
    first, last = math.atan(math.exp(-high / 2)), math.atan(math.exp(-low / 2))
    return -2 * (first + t * (last - first)).tan().log()


def test_interpolated_cosine_is_the_published_mean_of_two_shifted_log_snrs() -> None:
    """Shifted: log SNR + 2 ln(noise_d / image_d); interpolated from noise_d_low at t = 0 to noise_d_high at t = 1."""
    image, low, high = 256.0, 32.0, 128.0
    config = CosineConfig(low=1e-3, high=1e3, shift_low=image / low, shift_high=image / high)
    plain = logsnr_of_cosine(SHARES, -2 * math.log(1e3), -2 * math.log(1e-3))
    shifted = [plain + 2 * math.log(noise / image) for noise in (low, high)]
    published = (-((1 - SHARES) * shifted[0] + SHARES * shifted[1]) / 2).exp()
    assert torch.allclose(create_noise_distribution(config).quantile(SHARES), published, rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (LogNormalConfig, {"std": 0.0}),
        (LogNormalConfig, {"shift": 0.0}),
        (LogUniformConfig, {"low": 0.0}),
        (LogUniformConfig, {"low": 2.0, "high": 1.0}),
        (DDPMConfig, {"beta_start": 0.5, "beta_end": 0.1}),
        (CosineConfig, {"low": 2.0, "high": 1.0}),
        (CosineConfig, {"shift_low": 40.0}),
    ],
)
def test_distributions_without_a_meaning_are_refused_by_name(config: type, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        config(**values)
