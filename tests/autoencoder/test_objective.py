"""The objective is the evidence lower bound it is said to be, and each of its terms trains what it should."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ldm.autoencoder.bottleneck import GaussianBottleneck
from ldm.autoencoder.config import (
    AutoencoderConfig,
    EquivarianceConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    PerceptualConfig,
    ReconstructionObjectiveConfig,
    SparseConfig,
)
from ldm.autoencoder.losses.distance import DISTANCES
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import L1Penalty, L2Penalty, PenaltiesConfig
from ldm.batch import ImageBatch
from ldm.corruption import Blur, Corruption, GaussianNoise, Interpolation, Mask, SaltAndPepper
from ldm.errors import ConfigError
from ldm.randomness import StepRandom

SPECTRUM = torch.tensor([4.0, 2.0, 1.0, 0.4, 0.2, 0.1], dtype=torch.float64)
VARIANCE = 0.5  # of the decoder: keeps the first three directions
LATENT = 5


class Linear(nn.Module):
    """Vectors as images of one pixel, encoded and decoded by one matrix each."""

    downsampling, image_channels = (1, 1), 6

    def __init__(self, values: int, latent: int):
        super().__init__()
        self.image_channels = values
        self.encoder = nn.Conv2d(values, 2 * latent, 1)
        self.decoder = self.output_layer = nn.Conv2d(latent, values, 1)

    def encode(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor, hidden: Tensor | None = None) -> Tensor:
        return self.decoder(latents)


def gaussian_rows(count: int) -> Tensor:
    """Rows whose sample covariance has exactly this spectrum, along random directions, and whose mean is not zero."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, len(SPECTRUM), generator=generator, dtype=torch.float64)
    whitened = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).U * math.sqrt(count)
    directions = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    return whitened * SPECTRUM.sqrt() @ directions.T + torch.linspace(-1, 1, 6, dtype=torch.float64)


def batch_of(images: Tensor) -> ImageBatch:
    return ImageBatch(images, torch.zeros(len(images), dtype=torch.int64))


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return gaussian_rows(256)


@pytest.fixture(scope="module")
def probabilistic_pca(rows: Tensor) -> ReconstructionObjective:
    """A linear KL autoencoder with fixed decoder variance, trained to its optimum."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(Linear(6, LATENT), GaussianBottleneck(GaussianConfig(channels=LATENT))).double()
    objective = ReconstructionObjective(autoencoder, ReconstructionObjectiveConfig(distance="mse", kl=2 * VARIANCE))
    batch, steps = batch_of(rows[:, :, None, None]), 3000
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
    for step in range(steps):
        optimizer.zero_grad()
        objective(batch, StepRandom(0, step, len(rows))).total.backward()
        optimizer.step()
        schedule.step()
    return objective.requires_grad_(False)


def posterior_variances(objective: ReconstructionObjective, rows: Tensor) -> Tensor:
    """Mean posterior variance of each latent, in increasing order."""
    return objective.autoencoder.encode(rows[:, :, None, None]).logvar.exp().mean((0, 2, 3)).sort().values


def test_posterior_variances_of_probabilistic_pca_are_the_noise_over_the_eigenvalues(probabilistic_pca, rows):
    expected = VARIANCE / SPECTRUM[SPECTRUM > VARIANCE]
    found = posterior_variances(probabilistic_pca, rows)[: len(expected)]
    torch.testing.assert_close(found, expected.sort().values, rtol=0.03, atol=0)


def test_latents_collapse_exactly_where_the_eigenvalue_is_below_the_noise(probabilistic_pca, rows):
    kept = int((SPECTRUM > VARIANCE).sum())
    found = posterior_variances(probabilistic_pca, rows)
    assert bool((found[:kept] < 0.6).all()) and bool((found[kept:] > 0.98).all()), found
    posterior = probabilistic_pca.autoencoder.encode(rows[:, :, None, None])
    spread = posterior.mean.flatten(1).std(0, correction=0).sort().values
    assert bool((spread[: LATENT - kept] < 0.03).all()) and bool((spread[LATENT - kept :] > 0.6).all()), spread


def test_the_loss_is_the_negative_log_likelihood_of_probabilistic_pca(probabilistic_pca, rows):
    batch = batch_of(rows[:, :, None, None])
    totals = [probabilistic_pca(batch, StepRandom(1, step, len(rows))).total for step in range(200)]
    constant = 0.5 * math.log(2 * math.pi * VARIANCE)
    bound = 6 * (torch.stack(totals).mean() / (2 * VARIANCE) + constant)
    covariance = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)
    values, directions = torch.linalg.eigh(covariance)
    model = MultivariateNormal(rows.mean(0), directions * values.clamp_min(VARIANCE) @ directions.T)
    likelihood = -model.log_prob(rows).mean()
    assert abs(bound - likelihood) < 0.01 * likelihood, (bound, likelihood)


def test_decoder_columns_span_the_principal_directions(probabilistic_pca, rows):
    kept = int((SPECTRUM > VARIANCE).sum())
    principal = torch.linalg.svd(rows - rows.mean(0)).Vh[:kept]
    columns = probabilistic_pca.autoencoder.network.decoder.weight[:, :, 0, 0]
    lengths, expected = torch.linalg.svdvals(columns)[:kept], (SPECTRUM[:kept] - VARIANCE).sqrt()
    torch.testing.assert_close(lengths, expected, rtol=0.03, atol=0)
    window = torch.linalg.svd(columns).U[:, :kept]
    assert torch.linalg.svdvals(principal @ window).min() > 0.999


def small(size: int = 8, bottleneck: Any = None, **objective: object) -> tuple[ReconstructionObjective, ImageBatch]:
    torch.manual_seed(0)
    network = KLNetworkConfig(widths=(8, 8), norm_groups=4, mid_attention=False)
    config = AutoencoderConfig(network=network, bottleneck=bottleneck or GaussianConfig(channels=2))
    autoencoder = create_trainable(config, image=(3, size, size)).double()
    images = torch.rand(4, 3, size, size, dtype=torch.float64) * 2 - 1
    return ReconstructionObjective(autoencoder, ReconstructionObjectiveConfig(**objective)), batch_of(images)


def test_a_kl_weight_is_the_weight_of_latent_diffusion():
    """Rombach et al. minimize the summed distance plus 1e-6 times the summed KL, averaged over the batch."""
    objective, batch = small(distance="l1", kl=1e-6)
    losses = objective(batch, StepRandom(0, 0, 4))
    posterior = objective.autoencoder.encode(batch.images)
    kl = kl_divergence(Normal(posterior.mean, (posterior.logvar / 2).exp()), Normal(0.0, 1.0)).sum() / 4
    distance = (batch.images - losses.outputs["reconstruction"]).abs().sum() / 4
    expected, values = distance + 1e-6 * kl, 3 * 8 * 8
    torch.testing.assert_close(losses.total * values, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.terms["kl"] * values, 1e-6 * kl, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses.terms["kl_per_latent_element"], kl / (2 * 4 * 4), rtol=1e-9, atol=0)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts():
    objective, batch = small(distance="mse", kl=0.1)
    whole = objective(batch, StepRandom(0, 7, 4)).total
    parts = [
        objective(
            ImageBatch(*(values[2 * part : 2 * part + 2] for values in batch)),
            StepRandom.of_part(0, 7, total=4, parts=2, part=part),
        )
        for part in range(2)
    ]
    torch.testing.assert_close(torch.stack([part.total for part in parts]).mean(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_distance_alone_trains_every_weight(distance: str):
    objective, batch = small(distance=distance, kl=0.0)
    losses = objective(batch, StepRandom(0, 0, 4))
    losses.total.backward()
    assert losses.total == losses.terms[distance]
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            assert name == "autoencoder.output_logvar" and distance != "gaussian"
            continue
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_kl_alone_trains_the_encoder_and_nothing_of_the_decoder(distance: str):
    objective, batch = small(distance=distance, kl=1.0)
    objective(batch, StepRandom(0, 0, 4)).terms["kl"].backward()
    for name, parameter in objective.autoencoder.network.named_parameters():
        if name.startswith(("encoder", "quant_conv")):
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
        else:
            assert parameter.grad is None or not bool(parameter.grad.any()), name


def test_the_perceptual_term_alone_trains_decoder_and_encoder():
    """Computed under no_grad it would be logged and added, and train nothing."""
    objective, batch = small(perceptual=PerceptualConfig(backbone="random", size=32))
    objective(batch, StepRandom(0, 0, 4)).terms["perceptual"].backward()
    for name, parameter in objective.autoencoder.network.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
    assert not any(parameter.grad is not None for parameter in objective.perceptual.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"corruption": Mask(fraction=0.5)},
        {"latent_corruption": Interpolation(strength=1.0)},
        {"equivariance": EquivarianceConfig(probability=1.0)},
    ],
)
def test_what_makes_latents_robust_changes_the_loss_and_still_trains_everything(config):
    plain, batch = small(kl=0.0)
    changed, _ = small(kl=0.0, **config)
    losses = changed(batch, StepRandom(0, 1, 4))
    assert not losses.total.equal(plain(batch, StepRandom(0, 1, 4)).total)
    losses.total.backward()
    for name, parameter in changed.autoencoder.network.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


CUTS = [
    {},
    {"corruption": SaltAndPepper(probability=0.3), "emphasis": 0.9},
    {"corruption": Mask(fraction=(0.0, 0.6)), "emphasis": 1.0},
    {"corruption": Mask(fraction=0.5), "emphasis": 0.9},
    {"latent_corruption": Interpolation(), "distance": "huber"},
    {"latent_corruption": Blur(sigma=(0.2, 1.0))},
    {"penalties": PenaltiesConfig(l1=L1Penalty(), decay=L2Penalty())},
]


@pytest.mark.parametrize("config", CUTS, ids=str)
def test_whatever_is_asked_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts(config):
    """Otherwise two processes, or two micro-batches, train something else than one."""
    objective, batch = small(**config)
    whole = objective(batch, StepRandom(0, 7, 4)).total
    parts = [
        objective(
            ImageBatch(*(values[2 * part : 2 * part + 2] for values in batch)),
            StepRandom.of_part(0, 7, total=4, parts=2, part=part),
        ).total
        for part in range(2)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", get_args(Corruption))
def test_a_corrupted_image_is_encoded_and_the_clean_one_is_the_target(kind: type):
    corruption, rng = kind(), StepRandom(0, 2, 4)
    objective, batch = small(distance="mse", kl=0.0, corruption=corruption, bottleneck=IdentityConfig(channels=2))
    losses = objective(batch, rng)
    seen = corruption(batch.images, rng, name="input", patch=(2, 2)).values
    assert not seen.equal(batch.images)
    again = objective.autoencoder.decode(objective.autoencoder.encode(seen).mean)
    assert losses.outputs["images"].equal(batch.images)
    torch.testing.assert_close(losses.outputs["reconstruction"], again, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses.terms["mse"], (batch.images - again).square().mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", get_args(Corruption))
def test_a_corrupted_code_is_decoded_and_the_penalties_see_the_clean_one(kind: type):
    """A mask of the latent hides whole positions of it."""
    corruption, rng = kind(), StepRandom(0, 2, 4)
    config = {
        "distance": "mse",
        "latent_corruption": corruption,
        "penalties": PenaltiesConfig(l1=L1Penalty(weight=1.0)),
    }
    objective, batch = small(bottleneck=IdentityConfig(channels=2), **config)
    losses, code = objective(batch, rng), objective.autoencoder.encode(batch.images).mean
    decoded = objective.autoencoder.decode(corruption(code, rng, name="latent", patch=(1, 1)).values)
    torch.testing.assert_close(losses.outputs["reconstruction"], decoded, rtol=1e-12, atol=1e-12)
    values = batch.images[0].numel()
    torch.testing.assert_close(losses.terms["l1"], code.abs().flatten(1).sum(1).mean() / values, rtol=1e-9, atol=0)


def test_the_spread_of_the_code_is_logged_as_it_is():
    objective, batch = small(bottleneck=IdentityConfig(channels=2))
    terms, code = objective(batch, StepRandom(0, 0, 4)).terms, objective.autoencoder.encode(batch.images).mean
    spread = code.transpose(0, 1).flatten(1).std(1, correction=0)
    for name, expected in (
        ("latent_std", code.std(correction=0)),
        ("latent_std_min", spread.min()),
        ("latent_std_max", spread.max()),
    ):
        torch.testing.assert_close(terms[name], expected, rtol=1e-9, atol=0)
        assert not terms[name].requires_grad


def dense(bottleneck: Any, network: Any = None, **objective: Any) -> ReconstructionObjective:
    config = AutoencoderConfig(network=network or LinearNetworkConfig(), bottleneck=bottleneck)
    return ReconstructionObjective(
        create_trainable(config, image=(1, 4, 4)), ReconstructionObjectiveConfig(**objective)
    )


@pytest.mark.parametrize(
    "bottleneck",
    [
        IdentityConfig(channels=16),
        IdentityConfig(channels=99),
        SparseConfig(channels=16),
        SparseConfig(channels=40, k=16),
    ],
    ids=str,
)
@pytest.mark.parametrize("network", [LinearNetworkConfig(), MLPNetworkConfig(widths=(40,))], ids=lambda each: each.kind)
def test_a_code_that_holds_the_whole_image_is_refused_with_the_reason(network: Any, bottleneck: Any):
    with pytest.raises(ConfigError, match=r"holds all 16 of the image, so that copying is the best answer") as refused:
        dense(bottleneck, network)
    assert "\n" not in str(refused.value) and f"lower autoencoder.bottleneck.channels {bottleneck.channels} " in str(
        refused.value
    )


def test_whatever_holds_a_large_code_back_makes_it_possible():
    dense(IdentityConfig(channels=15))
    dense(IdentityConfig(channels=16), corruption=GaussianNoise())
    dense(IdentityConfig(channels=16), latent_corruption=GaussianNoise())
    dense(IdentityConfig(channels=16), penalties=PenaltiesConfig(l1=L1Penalty()))
    dense(SparseConfig(channels=64, k=3))
    with pytest.raises(ConfigError, match="copying"):
        dense(IdentityConfig(channels=16), penalties=PenaltiesConfig(decay=L2Penalty()))
    dense(GaussianConfig(channels=16), kl=1e-6)
    with pytest.raises(ConfigError, match="copying"):
        dense(GaussianConfig(channels=16), kl=0.0)


def test_the_gradient_of_the_total_is_the_sum_of_those_of_its_terms():
    objective, batch = small(distance="l1", kl=0.3)
    parameters = [*objective.autoencoder.network.encoder.parameters()]

    def gradient(of: str) -> list[Tensor]:
        losses = objective(batch, StepRandom(0, 0, 4))
        return list(torch.autograd.grad(losses.total if of == "total" else losses.terms[of], parameters))

    for total, distance, kl in zip(gradient("total"), gradient("l1"), gradient("kl"), strict=True):
        torch.testing.assert_close(total, distance + kl, rtol=1e-9, atol=1e-12)


def test_the_reconstruction_that_is_handed_out_carries_no_gradient():
    objective, batch = small()
    losses = objective(batch, StepRandom(0, 0, 4))
    assert not losses.outputs["reconstruction"].requires_grad


def test_losses_are_float32_where_the_network_runs_in_half_precision():
    objective, batch = small(kl=1.0)
    objective.float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(ImageBatch(batch.images.float(), batch.labels), StepRandom(0, 0, 4))
    assert {value.dtype for value in (losses.total, *losses.terms.values())} == {torch.float32}


@pytest.mark.parametrize("value", [-1e-6, float("nan"), float("inf")])
def test_a_kl_weight_without_a_meaning_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match="kl must be 0 or more"):
        ReconstructionObjectiveConfig(kl=value)
