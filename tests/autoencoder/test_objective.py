"""The weights and the corruptions of the objective mean what they say, and each of its terms trains what it should."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ldm.autoencoder.config import (
    DISTANCES,
    AutoencoderConfig,
    GaussianConfig,
    IdentityConfig,
    KLNetworkConfig,
    LinearNetworkConfig,
    MLPNetworkConfig,
    ReconstructionObjectiveConfig,
    SparseConfig,
    StageConfig,
)
from ldm.autoencoder.losses.config import EquivarianceConfig, PerceptualConfig
from ldm.autoencoder.model import create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.autoencoder.penalty import L1Penalty, L2Penalty, PenaltiesConfig
from ldm.batch import ImageBatch
from ldm.corruption import Blur, Corruption, GaussianNoise, Interpolation, Mask, SaltAndPepper
from ldm.errors import ConfigError
from ldm.randomness import StepRandom
from tests.support.backbones import random_alexnet
from tests.support.losses import checked_objective, losses_of


def batch_of(images: Tensor) -> ImageBatch:
    return ImageBatch(images, torch.zeros(len(images), dtype=torch.int64))


def small(size: int = 8, bottleneck: Any = None, **objective: object) -> tuple[ReconstructionObjective, ImageBatch]:
    torch.manual_seed(0)
    network = KLNetworkConfig(widths=(8, 8), norm_groups=4, mid_attention=False)
    config = AutoencoderConfig(network=network, bottleneck=bottleneck or GaussianConfig(channels=2))
    autoencoder = create_trainable(config, image=(3, size, size)).double()
    images = torch.rand(4, 3, size, size, dtype=torch.float64) * 2 - 1
    return checked_objective(autoencoder, ReconstructionObjectiveConfig(**objective), steps=4), batch_of(images)


def test_a_kl_weight_is_the_weight_of_latent_diffusion():
    """Rombach et al. minimize the summed distance plus 1e-6 times the summed KL, averaged over the batch."""
    objective, batch = small(distance="l1", kl=1e-6)
    losses = losses_of(objective, batch)
    posterior = objective.autoencoder.encode(batch.images)
    kl = kl_divergence(Normal(posterior.mean, (posterior.logvar / 2).exp()), Normal(0.0, 1.0)).sum() / 4
    distance = (batch.images - losses.outputs["reconstruction"]).abs().sum() / 4
    expected, values = distance + 1e-6 * kl, 3 * 8 * 8
    torch.testing.assert_close(losses.total * values, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.terms["kl"] * values, 1e-6 * kl, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses.terms["kl_per_latent_element"], kl / (2 * 4 * 4), rtol=1e-9, atol=0)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts():
    objective, batch = small(distance="mse", kl=0.1)
    whole = losses_of(objective, batch, 7).total
    parts = [
        losses_of(
            objective,
            ImageBatch(*(values[2 * part : 2 * part + 2] for values in batch)),
            rng=StepRandom.of_part(0, 7, total=4, parts=2, part=part),
        )
        for part in range(2)
    ]
    torch.testing.assert_close(torch.stack([part.total for part in parts]).mean(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_distance_alone_trains_every_weight(distance: str):
    objective, batch = small(distance=distance, kl=0.0)
    losses = losses_of(objective, batch)
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
    losses_of(objective, batch).terms["kl"].backward()
    for name, parameter in objective.autoencoder.network.named_parameters():
        if name.startswith(("encoder", "quant_conv")):
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
        else:
            assert parameter.grad is None or not bool(parameter.grad.any()), name


def test_the_perceptual_term_alone_trains_decoder_and_encoder():
    """Computed under no_grad it would be logged and added, and train nothing."""
    objective, batch = small(perceptual=PerceptualConfig(backbone="alex", weights_file=str(random_alexnet()), size=32))
    losses_of(objective, batch).terms["perceptual"].backward()
    for name, parameter in objective.autoencoder.network.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
    assert not any(parameter.grad is not None for parameter in objective.perceptual.parameters())


@pytest.mark.parametrize(
    "config",
    [
        {"corruption": Mask(fraction=0.5)},
        {"latent_corruption": Interpolation(strength=1.0)},
        {"equivariance": EquivarianceConfig(probability=1.0)},
    ],
)
def test_what_makes_latents_robust_changes_the_loss_and_still_trains_everything(config):
    plain, batch = small(kl=0.0)
    changed, _ = small(kl=0.0, **config)
    losses = losses_of(changed, batch, 1)
    assert not losses.total.equal(losses_of(plain, batch, 1).total)
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
    {"penalties": PenaltiesConfig(l1=L1Penalty(), l2=L2Penalty())},
]


@pytest.mark.parametrize("config", CUTS, ids=str)
def test_the_loss_of_a_corrupted_or_penalized_batch_is_the_mean_of_the_losses_of_its_parts(config):
    """Otherwise two processes, or two micro-batches, train something else than one."""
    objective, batch = small(**config)
    whole = losses_of(objective, batch, 7).total
    parts = [
        losses_of(
            objective,
            ImageBatch(*(values[2 * part : 2 * part + 2] for values in batch)),
            rng=StepRandom.of_part(0, 7, total=4, parts=2, part=part),
        ).total
        for part in range(2)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", get_args(Corruption))
def test_a_corrupted_image_is_encoded_and_the_clean_one_is_the_target(kind: type):
    corruption, rng = kind(), StepRandom(0, 2, 4)
    objective, batch = small(distance="mse", kl=0.0, corruption=corruption, bottleneck=IdentityConfig(channels=2))
    losses = losses_of(objective, batch, 2)
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
    losses, code = losses_of(objective, batch, 2), objective.autoencoder.encode(batch.images).mean
    decoded = objective.autoencoder.decode(corruption(code, rng, name="latent", patch=(1, 1)).values)
    torch.testing.assert_close(losses.outputs["reconstruction"], decoded, rtol=1e-12, atol=1e-12)
    values = batch.images[0].numel()
    torch.testing.assert_close(
        losses.terms["l1_sparsity"], code.abs().flatten(1).sum(1).mean() / values, rtol=1e-9, atol=0
    )


def test_the_spread_of_the_code_is_logged_as_it_is():
    objective, batch = small(bottleneck=IdentityConfig(channels=2))
    terms, code = losses_of(objective, batch).terms, objective.autoencoder.encode(batch.images).mean
    spread = code.transpose(0, 1).flatten(1).std(1, correction=0)
    for name, expected in (
        ("latent_std", code.std(correction=0)),
        ("latent_std_min", spread.min()),
        ("latent_std_max", spread.max()),
    ):
        torch.testing.assert_close(terms[name], expected, rtol=1e-9, atol=0)
        assert not terms[name].requires_grad


def fully_connected(bottleneck: Any, network: Any = None, **objective: Any) -> ReconstructionObjective:
    config = AutoencoderConfig(network=network or LinearNetworkConfig(), bottleneck=bottleneck)
    return checked_objective(create_trainable(config, image=(1, 4, 4)), ReconstructionObjectiveConfig(**objective))


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
        fully_connected(bottleneck, network)
    assert "\n" not in str(refused.value) and f"lower autoencoder.bottleneck.channels {bottleneck.channels} " in str(
        refused.value
    )


def test_whatever_holds_a_large_code_back_makes_it_possible():
    fully_connected(IdentityConfig(channels=15))
    fully_connected(IdentityConfig(channels=16), corruption=GaussianNoise())
    fully_connected(IdentityConfig(channels=16), latent_corruption=GaussianNoise())
    fully_connected(IdentityConfig(channels=16), penalties=PenaltiesConfig(l1=L1Penalty()))
    fully_connected(SparseConfig(channels=64, k=3))
    with pytest.raises(ConfigError, match="copying"):
        fully_connected(IdentityConfig(channels=16), penalties=PenaltiesConfig(l2=L2Penalty()))
    fully_connected(GaussianConfig(channels=16), kl=1e-6)
    with pytest.raises(ConfigError, match="copying"):
        fully_connected(GaussianConfig(channels=16), kl=0.0)


def test_the_gradient_of_the_total_is_the_sum_of_those_of_its_terms():
    objective, batch = small(distance="l1", kl=0.3)
    parameters = [*objective.autoencoder.network.encoder.parameters()]

    def gradient(of: str) -> list[Tensor]:
        losses = losses_of(objective, batch)
        return list(torch.autograd.grad(losses.total if of == "total" else losses.terms[of], parameters))

    for total, distance, kl in zip(gradient("total"), gradient("l1"), gradient("kl"), strict=True):
        torch.testing.assert_close(total, distance + kl, rtol=1e-9, atol=1e-12)


def test_the_reconstruction_that_is_handed_out_carries_no_gradient():
    objective, batch = small()
    losses = losses_of(objective, batch)
    assert not losses.outputs["reconstruction"].requires_grad


def test_an_objective_changes_nothing_of_the_autoencoder():
    """Freezing and usage are other calls: the loss of a step can be computed again."""
    config = {"stages": (StageConfig(trains="encoder"), StageConfig()), "penalties": PenaltiesConfig(l1=L1Penalty())}
    objective, batch = small(bottleneck=SparseConfig(channels=6, k=2), distance="mse", **config)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first, again = (losses_of(objective, batch, 0) for _ in range(2))
    assert first.total.equal(again.total) and first.terms.keys() == again.terms.keys()
    assert all(value.equal(before[name]) for name, value in objective.state_dict().items())
    assert all(each.requires_grad for each in objective.autoencoder.network.parameters())


def test_losses_are_float32_where_the_network_runs_in_half_precision():
    objective, batch = small(kl=1.0)
    objective.float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(objective, ImageBatch(batch.images.float(), batch.labels))
    assert {value.dtype for value in (losses.total, *losses.terms.values())} == {torch.float32}


@pytest.mark.parametrize("value", [-1e-6, float("nan"), float("inf")])
def test_a_kl_weight_without_a_meaning_is_refused_by_name(value: float):
    with pytest.raises(ValueError, match="kl must be at least 0"):
        ReconstructionObjectiveConfig(kl=value)
