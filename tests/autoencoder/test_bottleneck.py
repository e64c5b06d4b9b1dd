"""The posterior is a diagonal Gaussian, and its statistics are those of its samples."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.autoencoder.bottleneck import BOTTLENECKS, Gaussian, Posterior
from ldm.autoencoder.settings import Gaussian as GaussianSettings
from ldm.autoencoder.statistics import Statistics


def posterior(*shape: int, seed: int = 0) -> Posterior:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return Posterior(mean, logvar)


def as_normal(posterior: Posterior) -> Normal:
    return Normal(posterior.mean, (posterior.logvar / 2).exp())


def test_the_kl_is_that_of_a_normal_to_the_unit_normal_summed_over_the_latent():
    given = posterior(8, 3, 4, 5)
    expected = kl_divergence(as_normal(given), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(given.kl(), expected, rtol=1e-6, atol=0)


def test_the_kl_equals_a_monte_carlo_estimate():
    given, count = posterior(1, 2, 2, 2), 40_000
    many = Posterior(given.mean.expand(count, -1, -1, -1), given.logvar.expand(count, -1, -1, -1))
    samples = many.sample(torch.Generator().manual_seed(1))
    ratios = (as_normal(many).log_prob(samples) - Normal(0.0, 1.0).log_prob(samples)).sum((1, 2, 3))
    assert abs(ratios.mean() - given.kl()) < 4 * ratios.std() / math.sqrt(count)


def test_the_kl_is_never_negative_and_zero_only_for_the_unit_gaussian():
    for seed in range(20):
        assert bool((posterior(16, 1, 2, 2, seed=seed).kl() > 0).all())
    zero = torch.zeros(3, 2, 4, 4, dtype=torch.float64)
    assert torch.equal(Posterior(zero, zero).kl(), torch.zeros(3, dtype=torch.float64))
    extreme = torch.linspace(-30, 20, 101, dtype=torch.float64).view(-1, 1, 1, 1)
    assert bool((Posterior(torch.zeros_like(extreme), extreme).kl() >= 0).all())


def test_a_sample_is_a_function_of_its_generator():
    given = posterior(4, 2, 3, 3)
    first, again, other = (given.sample(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_sample_is_the_mean_plus_the_std_times_the_noise():
    given = posterior(4, 2, 3, 3)
    noise = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.testing.assert_close(given.at(noise), given.mean + given.logvar.exp().sqrt() * noise, rtol=1e-12, atol=1e-12)
    assert torch.equal(given.sample(torch.Generator().manual_seed(5)), given.at(noise))
    assert torch.equal(given.at(torch.zeros_like(noise)), given.mode()) and torch.equal(given.mode(), given.mean)


def test_standardizing_a_posterior_standardizes_its_samples():
    given, noise = posterior(6, 3, 2, 2), torch.randn(6, 3, 2, 2, dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.1, 3.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    standardized = given.standardized(mean, std)
    torch.testing.assert_close(standardized.at(noise), (given.at(noise) - mean) / std, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(as_normal(standardized).stddev, as_normal(given).stddev / std, rtol=1e-12, atol=0)


@pytest.mark.parametrize("settings", BOTTLENECKS)
def test_a_bottleneck_asks_the_encoder_for_what_it_needs(settings: type):
    bottleneck = BOTTLENECKS[settings](settings(channels=3))
    found = bottleneck(torch.randn(2, bottleneck.encoder_channels, 4, 4))
    assert found.mean.shape == found.logvar.shape == (2, 3, 4, 4)


def test_half_precision_moments_become_float32_and_float64_stay():
    bottleneck = Gaussian(GaussianSettings(channels=1))
    for given, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        assert bottleneck(torch.zeros(1, 2, 1, 1, dtype=given)).mean.dtype == expected
    assert bottleneck(torch.zeros(1, 2, 1, 1, dtype=torch.float64)).logvar.dtype == torch.float64


def test_an_encoder_that_runs_away_leaves_a_finite_kl_and_finite_samples():
    moments = torch.tensor([[0.0, 0.0, 1e4, -1e4]]).view(1, 4, 1, 1)
    found = Gaussian(GaussianSettings(channels=2))(moments)
    assert found.logvar.flatten().tolist() == [20.0, -30.0]
    assert bool(found.kl().isfinite().all() and found.sample().isfinite().all())


def collected(posteriors: list[Posterior]) -> Statistics:
    statistics = Statistics()
    for one in posteriors:
        statistics.add(one)
    return statistics


def test_the_statistics_are_those_of_many_samples():
    generator, draws = torch.Generator().manual_seed(0), 400
    given = posterior(40, 3, 2, 2)
    statistics = collected([given])
    samples = torch.stack([given.sample(generator) for _ in range(draws)]).transpose(0, 2).flatten(1)
    error = statistics.std / math.sqrt(samples.shape[1])
    assert bool(((statistics.mean - samples.mean(1)).abs() < 4 * error).all())
    assert bool(((statistics.std - samples.std(1)).abs() < 5 * error).all())


def test_statistics_of_the_means_alone_would_be_too_narrow():
    mean = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    statistics = collected([Posterior(mean, torch.full_like(mean, math.log(3.0)))])
    assert math.isclose(statistics.std.item(), 2.0) and abs(statistics.mean.item()) < 1e-15


def test_statistics_do_not_depend_on_how_images_are_batched():
    given = posterior(24, 4, 3, 3)
    whole = collected([given])
    for sizes in ([1] * 24, [5, 7, 12], [23, 1]):
        means, logvars = given.mean.split(sizes), given.logvar.split(sizes)
        parts = collected([Posterior(*pair) for pair in zip(means, logvars, strict=True)])
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(parts.std, whole.std, rtol=1e-12, atol=0)


def test_float32_latents_far_from_zero_keep_their_spread():
    """Summed in float32, squares of 1000 would drown a spread of 0.1."""
    mean = 1000 + 0.1 * torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    statistics = collected([Posterior(part, torch.full_like(part, -30.0)) for part in mean.split(50)])
    torch.testing.assert_close(statistics.mean, mean.double().mean()[None], rtol=1e-9, atol=0)
    torch.testing.assert_close(statistics.std, mean.double().std(correction=0)[None], rtol=1e-4, atol=0)
