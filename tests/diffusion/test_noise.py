"""Noise levels: the distributions have the moments they name, and the grid descends for every number of steps."""

import math

import pytest
import torch
from torch.distributions import Normal

from ldm.config.reader import sections_of
from ldm.diffusion.config import (
    NOISE_DISTRIBUTIONS,
    LogNormalConfig,
    LogUniformConfig,
    NoiseDistributionConfig,
    SamplingConfig,
)
from ldm.diffusion.noise import karras_sigmas, sample_sigmas
from ldm.randomness import generator

COUNT = 200_000


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


@pytest.mark.parametrize("steps", range(1, 61))
def test_the_grid_descends_from_the_largest_to_the_smallest_level_and_then_to_zero(steps: int) -> None:
    sigmas = karras_sigmas(steps, 0.01, 40.0, 7.0)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert bool((sigmas.diff() < 0).all())
    assert sigmas[0] == 40.0 and sigmas[-1] == 0
    assert steps == 1 or math.isclose(sigmas[-2], 0.01, rel_tol=1e-6)


def test_the_grid_is_even_in_the_rho_th_root_of_sigma() -> None:
    roots = karras_sigmas(10, 0.02, 30.0, 5.0)[:-1].double() ** (1 / 5)
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(9), rtol=1e-5)


def test_scaling_both_ends_scales_the_grid() -> None:
    assert torch.allclose(karras_sigmas(12, 0.06, 120.0, 7.0), 3 * karras_sigmas(12, 0.02, 40.0, 7.0), rtol=1e-6)


def test_a_grid_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        karras_sigmas(0, 0.01, 40.0, 7.0)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (LogNormalConfig, {"std": 0.0}),
        (LogUniformConfig, {"low": 0.0}),
        (LogUniformConfig, {"low": 2.0, "high": 1.0}),
        (SamplingConfig, {"sigma_min": 0.0}),
        (SamplingConfig, {"sigma_min": 50.0}),
        (SamplingConfig, {"rho": 0.0}),
        (SamplingConfig, {"sigma_max": float("nan")}),
    ],
)
def test_configs_without_a_meaning_are_refused_by_name(config: type, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        config(**values)
