"""The residual network starts as the lapped transform of its training images, and learns from there."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.autoencoder import lapped_transform
from ldm.autoencoder.config import (
    AutoencoderConfig,
    GaussianConfig,
    ReconstructionObjectiveConfig,
    ResidualNetworkConfig,
    StageConfig,
)
from ldm.autoencoder.config_checks import problems
from ldm.autoencoder.losses.adaptive_weight import adaptive_weight, gradients_at
from ldm.autoencoder.losses.config import EquivarianceConfig
from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.penalty import L1Penalty, PenaltiesConfig
from ldm.corruption import GaussianNoise
from ldm.errors import ConfigError
from ldm.training.muon import hidden_weights
from ldm.training.optim import lr_factors
from ldm.verify.known_data import smooth_images


def residual(images: Tensor, *, factor: int = 4, channels: int = 3, noise: float | None = 0.1) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        network=ResidualNetworkConfig(downsampling=factor, width=8, blocks=1),
        bottleneck=GaussianConfig(channels=channels, noise=noise),
    )
    autoencoder = create_trainable(config, image=(images.shape[1], images.shape[2], images.shape[3]))
    autoencoder.initialize(lambda count: images[:count])
    return autoencoder


def by_hand(transform: lapped_transform.LappedTransform, images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    mean = transform.mean.view(-1, 1, 1)
    code = F.conv2d(F.pixel_unshuffle(images, patch).double() - mean, transform.encoder, padding=1)
    return code, F.pixel_shuffle(F.conv2d(code, transform.decoder, padding=1) + mean, patch)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_untrained_network_is_the_linear_transform(factor):
    images = smooth_images(40, 3, 16, 24).float()
    autoencoder = residual(images, factor=factor, channels=2)
    code, expected = by_hand(lapped_transform.fit(images, factor, 2, 0.1), images, factor)
    with torch.no_grad():
        standardized = (code / code.std((0, 2, 3), correction=0, keepdim=True)).float()
        torch.testing.assert_close(autoencoder.encode(images).mean, standardized, atol=1e-4, rtol=1e-4)
        decoded = autoencoder.network.decode(code.float())
    torch.testing.assert_close(decoded, expected.float(), atol=1e-4, rtol=1e-4)


def test_a_learned_log_variance_starts_at_the_noise():
    autoencoder = residual(images := smooth_images(20, 1, 16, 16).float(), noise=None)
    posterior = autoencoder.encode(images)
    torch.testing.assert_close(posterior.variance.sqrt(), torch.full_like(posterior.mean, lapped_transform.NOISE))


def test_images_whose_sides_the_patch_does_not_divide_and_of_one_position_come_back_at_their_size():
    autoencoder = residual(smooth_images(20, 3, 16, 16).float()).requires_grad_(False)
    for sides in ((16, 16), (4, 4), (3, 5), (1, 1), (17, 30)):
        assert autoencoder.reconstruct(torch.rand(2, 3, *sides)).shape == (2, 3, *sides)


def test_more_latent_channels_than_values_of_a_patch_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^autoencoder\.bottleneck\.channels 5 is more than the 4 values of a patch"):
        residual(smooth_images(8, 1, 16, 16).float(), factor=2, channels=5)
    with pytest.raises(ConfigError, match=r"^autoencoder\.bottleneck\.channels 257 is more than 256: lower it$"):
        residual(smooth_images(8, 3, 16, 16).float(), factor=16, channels=257)


def test_muon_leaves_what_faces_images_or_latents_to_adamw_however_wide_it_is():
    config = AutoencoderConfig(
        network=ResidualNetworkConfig(downsampling=8, width=64, blocks=1), bottleneck=GaussianConfig(channels=48)
    )
    names = hidden_weights(create_trainable(config, image=(3, 16, 16)))
    assert names == {
        *(f"network.encoder.blocks.0.conv{number}.weight" for number in (1, 2)),
        *(f"network.decoder.blocks.{block}.conv{number}.weight" for block in (0, 1) for number in (1, 2)),
    }


def test_an_encoder_without_blocks_is_linear_and_a_factor_of_zero_leaves_it_the_transform():
    network = ResidualNetworkConfig(downsampling=4, width=32, blocks=0, decoder_blocks=3, encoder_lr_factor=0)
    config = AutoencoderConfig(network=network, bottleneck=GaussianConfig(channels=4, noise=0.05))
    autoencoder = create_trainable(config, image=(3, 16, 16))
    images = smooth_images(20, 3, 16, 16).float()
    autoencoder.initialize(lambda count: images[:count])
    first, second = images[:4], images[4:8]
    with torch.no_grad():
        mean, *apart = (autoencoder.network.encode(x) for x in ((first + second) / 2, first, second))
    torch.testing.assert_close(mean, (apart[0] + apart[1]) / 2, rtol=1e-4, atol=1e-4)
    learning = {name for name, parameter in autoencoder.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[1] for name in learning} == {"decoder"}
    assert len(autoencoder.network.decoder.blocks) == 3


def test_the_encoder_learns_at_its_own_rate():
    network = ResidualNetworkConfig(downsampling=4, width=32, blocks=1, encoder_lr_factor=0.03)
    autoencoder = create_trainable(AutoencoderConfig(network=network), image=(3, 16, 16))
    factors = lr_factors(autoencoder)
    assert {factors[name] for name in factors if ".encoder." in name} == {0.03}
    assert {factors[name] for name in factors if ".encoder." not in name} == {1.0}
    assert all(parameter.requires_grad for name, parameter in autoencoder.named_parameters() if ".encoder." in name)


@pytest.mark.parametrize(
    ("noise", "settings", "wrong"),
    [
        (0.05, {"equivariance": EquivarianceConfig()}, "objective.equivariance shapes the encoder"),
        (0.05, {"penalties": PenaltiesConfig(l1=L1Penalty())}, "objective.penalties.l1 shapes the encoder"),
        (None, {}, "noise null is a variance learned by the encoder"),
        (0.05, {"latent_corruption": GaussianNoise(), "stages": (StageConfig(trains="decoder"),)}, None),
    ],
)
def test_what_only_an_encoder_can_learn_is_refused_where_it_is_frozen(
    noise: float | None, settings: dict[str, Any], wrong: str | None
) -> None:
    objective = ReconstructionObjectiveConfig(**settings)
    for factor in (0.0, 0.03):
        network = ResidualNetworkConfig(downsampling=4, width=8, blocks=0, encoder_lr_factor=factor)
        config = AutoencoderConfig(network=network, bottleneck=GaussianConfig(channels=4, noise=noise))
        found = list(problems(create_trainable(config, image=(3, 16, 16)), objective, 0))
        assert len(found) == (wrong is not None and factor == 0)
        assert all(str(wrong) in each for each in found)


def test_the_adaptive_weight_before_the_pixel_shuffle_is_that_of_plain_autograd():
    images = smooth_images(6, 3, 16, 16).float().double()
    autoencoder = residual(images).double()
    for parameter in autoencoder.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    network, seen = autoencoder.network, []
    layer = network.output_layer
    assert isinstance(layer, nn.Conv2d)
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    reconstruction = autoencoder.reconstruct(images)

    def first(y: Tensor) -> dict[str, Tensor]:
        return {"l1": (y - images).abs().mean()}

    def second(y: Tensor) -> dict[str, Tensor]:
        return {"other": (y * torch.linspace(-1, 1, y.shape[-1]).double()).square().mean()}

    (at_images,), (other_at_images,) = (gradients_at(loss, [reconstruction])[1] for loss in (first, second))
    found = adaptive_weight(*map(network.output_gradient, (at_images, other_at_images)), seen[0], layer)
    norms = [
        torch.autograd.grad(sum(loss(reconstruction).values()), layer.weight, retain_graph=True)[0].norm()
        for loss in (first, second)
    ]
    torch.testing.assert_close(found, norms[0] / (norms[1] + 1e-8), rtol=1e-9, atol=0)


def test_scaling_the_code_and_what_meets_it_first_is_the_same_image():
    network = residual(smooth_images(20, 3, 16, 16).float()).requires_grad_(False).network
    latents, scale = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 4.0, 1.0])
    before, lengths = network.decode(latents), network.decoder_in_weight.transpose(0, 1).flatten(1).norm(dim=1)
    for part in (network.decoder.linear, network.decoder.conv_in):
        part.weight *= scale.view(1, 3, 1, 1)
    torch.testing.assert_close(network.decode(latents / scale.view(3, 1, 1)), before, rtol=1e-4, atol=1e-5)
    after = network.decoder_in_weight.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(after, lengths * scale)


def test_the_code_has_variance_one_over_the_training_images_and_the_noise_is_of_that():
    images = smooth_images(50, 3, 16, 16).float()
    autoencoder = residual(images, noise=0.07)
    posterior = autoencoder.encode(images)
    torch.testing.assert_close(posterior.mean.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-4, atol=0)
    assert posterior.logvar is not None and posterior.logvar.eq(2 * math.log(0.07)).all()
