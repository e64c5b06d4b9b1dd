"""The posterior is a diagonal Gaussian, and its statistics are those of its samples."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldm.autoencoder.bottleneck import Bottleneck, GaussianBottleneck, IdentityBottleneck, Posterior, SparseBottleneck
from ldm.autoencoder.config import (
    BOTTLENECKS,
    AutoencoderConfig,
    BottleneckConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    ReconstructionObjectiveConfig,
    SparseConfig,
    TinyNetworkConfig,
    ViTNetworkConfig,
)
from ldm.autoencoder.latent_statistics import LatentStatistics
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import ImageBatch
from ldm.config.reader import sections_of
from ldm.randomness import StepRandom
from tests.support.losses import losses_of

CONFIGS = sections_of(BottleneckConfig)


def posterior(*shape: int, seed: int = 0) -> Posterior:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return Posterior(mean, logvar)


def bottleneck_of(config: BottleneckConfig) -> Bottleneck:
    return BOTTLENECKS[config.kind].load()(config)


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
    torch.testing.assert_close(
        given.reparameterize(noise), given.mean + given.logvar.exp().sqrt() * noise, rtol=1e-12, atol=1e-12
    )
    assert torch.equal(given.sample(torch.Generator().manual_seed(5)), given.reparameterize(noise))
    assert torch.equal(given.reparameterize(torch.zeros_like(noise)), given.mode()) and torch.equal(
        given.mode(), given.mean
    )


def test_standardizing_a_posterior_standardizes_its_samples():
    given, noise = posterior(6, 3, 2, 2), torch.randn(6, 3, 2, 2, dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.1, 3.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    standardized = given.standardized(mean, std)
    torch.testing.assert_close(
        standardized.reparameterize(noise), (given.reparameterize(noise) - mean) / std, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(as_normal(standardized).stddev, as_normal(given).stddev / std, rtol=1e-12, atol=0)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_bottleneck_asks_the_encoder_for_what_it_needs(config: type):
    bottleneck = bottleneck_of(config(channels=3))
    found = bottleneck(torch.randn(2, bottleneck.encoder_channels, 4, 4))
    assert found.latents.shape == found.posterior.mean.shape == found.posterior.variance.shape == (2, 3, 4, 4)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_bottleneck_gives_the_standardized_mode_and_in_training_a_sample_by_the_numbers_of_the_step(config: type):
    bottleneck, rng = bottleneck_of(config(channels=3)), StepRandom(0, 5, 2)
    moments = torch.randn(2, bottleneck.encoder_channels, 4, 4, dtype=torch.float64)
    mean, std = torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1).double(), torch.tensor([0.1, 3, 1]).view(3, 1, 1).double()
    expected = bottleneck.posterior(moments).standardized(mean, std)
    code, sample = (bottleneck(moments, each, (mean, std)) for each in (None, rng))
    assert code.latents.equal(expected.mode()) and code.posterior.mean.equal(expected.mean)
    assert sample.latents.equal(expected.reparameterize(rng.normal("posterior", 3, 4, 4)))
    assert sample.latents.equal(code.latents) != BOTTLENECKS[config.kind].stochastic
    facts = BOTTLENECKS[config.kind]
    assert sample.costs().keys() == ({"kl"} if facts.stochastic else {"rate"} if facts.has_rate else set())
    assert not facts.stochastic or sample.costs()["kl"].equal(expected.kl())


def test_half_precision_moments_become_float32_and_float64_stay():
    bottleneck = GaussianBottleneck(GaussianConfig(channels=1))
    for given, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        assert bottleneck(torch.zeros(1, 2, 1, 1, dtype=given)).latents.dtype == expected
    assert bottleneck.posterior(torch.zeros(1, 2, 1, 1, dtype=torch.float64)).logvar.dtype == torch.float64


def test_an_encoder_that_runs_away_leaves_a_finite_kl_and_finite_samples():
    moments = torch.tensor([[0.0, 0.0, 1e4, -1e4]]).view(1, 4, 1, 1)
    found = GaussianBottleneck(GaussianConfig(channels=2)).posterior(moments)
    assert found.logvar.flatten().tolist() == [20.0, -30.0]
    assert bool(found.kl().isfinite().all() and found.sample().isfinite().all())


def collected(posteriors: list[Posterior]) -> LatentStatistics:
    statistics = LatentStatistics()
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


# ---- deterministic codes


@pytest.mark.parametrize("config", [each for each in CONFIGS if not BOTTLENECKS[each.kind].stochastic])
def test_a_deterministic_code_is_each_of_its_samples(config: type):
    found = bottleneck_of(config(channels=3)).posterior(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert found.logvar is None and not found.variance.any() and bool((found.kl() == torch.inf).all())
    for sample in (found.sample(), found.reparameterize(torch.randn(2, 3, 4, 4, dtype=torch.float64)), found.mode()):
        assert sample.equal(found.mean)


def test_a_deterministic_code_stays_one_when_it_is_standardized():
    code = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.1, 3.0, 1.0], dtype=torch.float64).view(3, 1, 1)
    found = Posterior(code).standardized(mean, std)
    assert found.logvar is None and found.sample().equal((code - mean) / std)


def test_a_deterministic_code_carries_its_gradient_and_none_of_its_variance():
    code = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    found = Posterior(code)
    assert not found.variance.requires_grad
    found.sample().sum().backward()
    assert code.grad is not None and bool((code.grad == 1).all())


def test_the_statistics_of_deterministic_codes_are_those_of_the_codes():
    code = posterior(40, 3, 2, 2).mean
    statistics = collected([Posterior(code)])
    torch.testing.assert_close(statistics.mean, code.mean((0, 2, 3)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(statistics.std, code.std((0, 2, 3), correction=0), rtol=1e-12, atol=0)


def test_the_identity_is_the_identity():
    moments = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    bottleneck = IdentityBottleneck(IdentityConfig(channels=3))
    assert bottleneck(moments).latents.equal(moments) and bottleneck.encoder_channels == 3


# ---- sparse codes


@pytest.mark.parametrize("k", [0, 1, 3, 8])
def test_at_every_position_the_k_largest_values_are_kept_as_they_are(k: int):
    moments = torch.randn(5, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    code = SparseBottleneck(SparseConfig(channels=8, k=k))(moments).latents
    expected = moments.relu().movedim(1, -1).reshape(-1, 8).clone()
    for row in expected:
        row[row.argsort(descending=True)[k or 8 :]] = 0
    assert code.movedim(1, -1).reshape(-1, 8).equal(expected)
    assert (code > 0).sum(1).max() <= (k or 8)


def test_a_gradient_reaches_only_what_is_kept():
    moments = torch.randn(5, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    code = SparseBottleneck(SparseConfig(channels=8, k=2))(moments).latents
    code.sum().backward()
    assert (moments.grad != 0).equal(code > 0)


def test_a_sigmoid_code_is_a_rate():
    moments = torch.randn(2, 5, 2, 2, dtype=torch.float64)
    found = SparseBottleneck(SparseConfig(channels=5, activation="sigmoid"))(moments).latents
    assert found.equal(moments.sigmoid()) and found.min() > 0 and found.max() < 1


def test_a_unit_is_dead_that_was_above_0_nowhere_for_longer_than_dead_after():
    bottleneck = SparseBottleneck(SparseConfig(channels=3, dead_after=5))
    code = torch.zeros(4, 3, 2, 2)
    code[2, 1, 0, 1] = 0.1  # one position of one image is enough
    bottleneck.update_usage(code, 10)
    assert bottleneck.last_active.tolist() == [0, 10, 0]
    assert (
        bottleneck.dead_units(15).tolist() == [True, False, True] and bottleneck.dead_units(16).tolist() == [True] * 3
    )
    code[0, 0] = 1
    bottleneck.update_usage(code, 16)
    assert bottleneck.last_active.tolist() == [16, 16, 0]


def test_at_the_beginning_no_unit_is_dead():
    bottleneck = SparseBottleneck(SparseConfig(channels=3, dead_after=5))
    assert not [step for step in range(6) if bool(bottleneck.dead_units(step).any())]


def sparse_objective(**config: object) -> tuple[ReconstructionObjective, ImageBatch]:
    torch.manual_seed(0)
    sparse = SparseConfig(channels=6, dead_after=3, **config)
    autoencoder = create_trainable(
        AutoencoderConfig(network=MLPNetworkConfig(widths=(8,)), bottleneck=sparse), image=(1, 4, 4)
    ).double()
    images = torch.rand(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    objective = ReconstructionObjective(autoencoder, ReconstructionObjectiveConfig(distance="mse"))
    return objective, ImageBatch(images, torch.zeros(8, dtype=torch.int64))


def test_what_is_logged_of_a_sparse_code_is_what_it_is_said_to_be():
    objective, batch = sparse_objective(k=2)
    objective.autoencoder.network.encoder[-1].bias.data[4] = -100  # a unit that is never active
    bottleneck = objective.autoencoder.bottleneck
    objective.schedule.begin_step(0)
    for step in (0, 9):
        losses = losses_of(objective, batch, step)
        bottleneck.update_usage(losses.outputs["code"], step)
    code, again = objective.autoencoder.encode(batch.images).mean, losses.outputs["reconstruction"]
    active = (code > 0).flatten(2).any(2).any(0)
    terms, mean = losses.terms, batch.images.mean(0)
    assert bottleneck.last_active.equal(torch.where(active, 9, 0)) and not active[4]
    close = {"rtol": 1e-9, "atol": 0.0}
    torch.testing.assert_close(terms["l0"], (code > 0).double().sum(1).mean(), **close)
    torch.testing.assert_close(terms["dead_fraction"], (~active).double().mean(), **close)
    explained = 1 - (batch.images - again).square().sum() / (batch.images - mean).square().sum()
    torch.testing.assert_close(terms["explained_variance"], explained, **close)
    torch.testing.assert_close(terms["latent_std"], code.std(correction=0), **close)


def test_the_last_active_steps_are_part_of_what_is_saved(tmp_path):
    objective, batch = sparse_objective()
    objective.autoencoder.bottleneck.update_usage(losses_of(objective, batch, 7).outputs["code"], 7)
    objective.autoencoder.save(tmp_path)
    last_active = Autoencoder.load(tmp_path).bottleneck.last_active
    assert last_active.equal(objective.autoencoder.bottleneck.last_active) and 7 in last_active.tolist()


NETWORKS = [
    LinearNetworkConfig(),
    LinearNetworkConfig(tied=True),
    MLPNetworkConfig(widths=(8,)),
    KLNetworkConfig(widths=(4, 4), norm_groups=2),
    TinyNetworkConfig(width=4, levels=1, blocks=1),
    ViTNetworkConfig(patch=2, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2),
]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_scaling_a_column_of_the_decoder_changes_nothing_where_columns_have_length_1(network):
    torch.manual_seed(0)
    for unit_norm in (True, False):
        sparse = SparseConfig(channels=5, unit_norm=unit_norm)
        autoencoder = create_trainable(AutoencoderConfig(network=network, bottleneck=sparse), image=(2, 4, 4)).double()
        code = torch.rand(3, 5, *autoencoder.latent_shape((4, 4))[1:], dtype=torch.float64)
        before = autoencoder.decode_raw(code).detach()
        with torch.no_grad():
            autoencoder.network.decoder_in_weight[:, 2] *= 7
        assert torch.allclose(autoencoder.decode_raw(code), before, rtol=1e-9, atol=1e-12) == unit_norm


def test_a_code_that_shrinks_cannot_be_undone_by_longer_columns():
    """Without columns of length 1 an L1 penalty is vacuous: halve the code, double the columns."""
    for unit_norm in (True, False):
        torch.manual_seed(0)
        sparse = SparseConfig(channels=5, unit_norm=unit_norm)
        autoencoder = create_trainable(
            AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=sparse), image=(2, 4, 4)
        ).double()
        images = torch.rand(3, 2, 4, 4, dtype=torch.float64)
        before = autoencoder.reconstruct(images)
        with torch.no_grad():
            for each in autoencoder.network.encoder.parameters():
                each /= 2
            autoencoder.network.decoder[0].weight *= 2
        assert torch.allclose(autoencoder.reconstruct(images), before, rtol=1e-9, atol=1e-12) != unit_norm


def test_a_column_of_zeros_does_not_divide_by_zero():
    sparse = SparseConfig(channels=5)
    autoencoder = create_trainable(AutoencoderConfig(network=LinearNetworkConfig(), bottleneck=sparse), image=(2, 4, 4))
    with torch.no_grad():
        autoencoder.network.decoder[0].weight[:, 1] = 0
    code = torch.rand(3, 5, 1, 1, requires_grad=True)
    found = autoencoder.decode_raw(code)
    found.sum().backward()
    assert bool(found.isfinite().all()) and bool(code.grad.isfinite().all())
    assert bool(autoencoder.network.decoder[0].weight.grad.isfinite().all())


@pytest.mark.parametrize("value", [0.0, 0.1])
@pytest.mark.parametrize(
    "network", [LinearNetworkConfig(), KLNetworkConfig(widths=(4, 4), norm_groups=2)], ids=lambda n: n.kind
)
def test_a_channel_that_never_varies_does_not_become_nan_when_it_is_standardized(network, value, tmp_path):
    torch.manual_seed(0)
    config = AutoencoderConfig(network=network, bottleneck=SparseConfig(channels=3))
    autoencoder, images = (
        create_trainable(config, image=(2, 4, 4)).eval().requires_grad_(False),
        torch.rand(20, 2, 4, 4),
    )
    last = autoencoder.network.encoder[0] if network.kind == "linear" else autoencoder.network.quant_conv
    last.weight[1] = 0
    last.bias[1] = value
    before = autoencoder.reconstruct(images)
    statistics = collected([autoencoder.encode(images)])
    autoencoder.standardize(statistics.mean, statistics.std)
    latents = autoencoder.encode(images).mean
    assert bool(latents.isfinite().all()) and latents[:, 1].abs().max() < 1e-3
    torch.testing.assert_close(autoencoder.reconstruct(images), before, rtol=1e-4, atol=1e-5)
    autoencoder.save(tmp_path)
    again = Autoencoder.load(tmp_path)
    assert bool(again.encode(images).mean.isfinite().all())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": -1}, "k must be at least 0, not -1"),
        ({"channels": 5, "k": 6}, "k must be from 0 to channels 5, not 6"),
        ({"k": 3, "activation": "sigmoid"}, "use relu"),
        ({"dead_after": 0}, "dead_after must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
    ],
)
def test_a_sparse_code_without_a_meaning_is_refused_by_name(wrong, says):
    with pytest.raises(ValueError, match=says) as refused:
        SparseConfig(**wrong)
    assert "\n" not in str(refused.value)


def test_noise_that_is_set_stays_beside_a_code_that_grows_and_micro_batches_count_as_one():
    """A fixed variance would let the encoder escape the noise by scaling its code up."""
    bottlenecks = [GaussianBottleneck(GaussianConfig(channels=2, noise=0.1)) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        moments = 1.01**step * torch.randn(8, 2, 4, 4, generator=generator)
        whole, parts = bottlenecks
        whole.update_usage(whole(moments).posterior.mean, step)
        halves = [parts(half).posterior.mean for half in moments.chunk(2)]
        for number, half in enumerate(halves):
            parts.update_usage(half, step, is_last=number == 1)
    torch.testing.assert_close(whole.moments, parts.moments, rtol=1e-4, atol=1e-6)
    posterior = whole(moments).posterior
    ratio = posterior.variance.sqrt().mean() / posterior.mean.std()
    assert moments.std() > 15 and 0.05 < ratio < 0.12
    assert {"moments"} == set(whole.state_dict()) and not GaussianBottleneck(GaussianConfig()).state_dict()
