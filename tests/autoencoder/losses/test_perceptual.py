"""The perceptual distance is LPIPS where lpips has one, and a distance with a usable gradient everywhere."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.autoencoder.losses.config import PerceptualConfig
from ldm.autoencoder.losses.perceptual import LEARNED, Perceptual, resize_up, rgb_triples, unit_length
from ldm.randomness import generator
from tests.support.backbones import random_alexnet


def drawn(*shape: int, purpose: str = "images") -> Tensor:
    """In [-1, 1]."""
    return torch.rand(*shape, dtype=torch.float64, generator=generator(0, purpose)) * 2 - 1


def theirs(net: str):
    """The lpips package's own distance, its network random."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def with_random_weights(net: str, folder: Path) -> tuple[Perceptual, torch.nn.Module]:
    """Ours and theirs with the same random network and the learned weights of the channels."""
    peer = theirs(net)
    tensors = {f"features.{name.partition('.')[2]}": value for name, value in peer.net.state_dict().items()}
    torch.save(tensors, folder / "weights.pth")
    return Perceptual(PerceptualConfig(backbone=net, weights_file=str(folder / "weights.pth"), size=64)), peer


@pytest.fixture(scope="module")
def distance() -> Perceptual:
    """AlexNet with random weights in float64, images at least 32 pixels large."""
    return Perceptual(PerceptualConfig(backbone="alex", weights_file=str(random_alexnet()), size=32)).double()


@pytest.mark.parametrize("net", LEARNED)
def test_it_is_the_distance_of_the_lpips_package(net: str, tmp_path: Path) -> None:
    ours, peer = with_random_weights(net, tmp_path)
    images = drawn(3, 3, 80, 64).float()
    reconstruction = images + 0.3 * drawn(3, 3, 80, 64, purpose="noise").float()
    expected = peer(images, reconstruction).flatten()
    torch.testing.assert_close(ours(images, reconstruction), expected, rtol=1e-4, atol=1e-5)
    assert bool((expected > 1e-3).all())


def test_a_pixel_without_features_gives_no_nan_where_the_lpips_package_does(tmp_path: Path) -> None:
    """The derivative of the root at 0 is infinite: their epsilon is outside of it, ours inside."""
    import lpips

    flat = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad((lpips.normalize_tensor(flat) - 0.5).square().sum(), flat)
    assert bool(gradient.isnan().any())
    (gradient,) = torch.autograd.grad((unit_length(flat) - 0.5).square().sum(), flat)
    assert bool(gradient.isfinite().all())


def test_the_gradient_of_a_reconstruction_without_any_feature_is_finite(distance: Perceptual) -> None:
    """The mean color of ImageNet is black to a network without biases: every map is zero."""
    reconstruction = distance.backbone.shift.expand(2, 3, 32, 32).clone().requires_grad_()
    assert not any(bool(features.any()) for features in distance.backbone(reconstruction))
    images = drawn(2, 3, 32, 32)
    value = distance(images, reconstruction)
    value.sum().backward()
    maps = zip(distance.channel_weights, distance.features(images, [[0, 1, 2]]), strict=True)
    expected = torch.stack([(weight * features.square()).sum(1).mean((1, 2)) for weight, features in maps]).sum(0)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    assert bool((value > 0.1).all())
    assert reconstruction.grad is not None and bool(reconstruction.grad.isfinite().all())


def test_the_gradient_is_the_derivative_and_is_of_the_reconstruction_alone(distance: Perceptual) -> None:
    images, reconstruction = (drawn(2, 3, 32, 32, purpose=p).requires_grad_() for p in ("images", "reconstruction"))
    distance(images, reconstruction).sum().backward()
    assert images.grad is None and all(parameter.grad is None for parameter in distance.parameters())
    direction, step = drawn(2, 3, 32, 32, purpose="direction"), 1e-6
    with torch.no_grad():
        ahead, behind = (distance(images, reconstruction + sign * step * direction).sum() for sign in (1, -1))
    slope = (reconstruction.grad * direction).sum()
    assert abs(slope) > 1e-3
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=1e-4, atol=0)


def test_values_outside_of_the_range_have_a_gradient_too(distance: Perceptual) -> None:
    """Clamped to [-1, 1] before the backbone they would never be called back."""
    reconstruction = (3 * drawn(1, 3, 32, 32)).requires_grad_()
    distance(drawn(1, 3, 32, 32), reconstruction).sum().backward()
    outside = reconstruction.detach().abs() > 1
    assert reconstruction.grad is not None and bool((reconstruction.grad[outside] != 0).float().mean() > 0.9)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7, 13])
def test_the_same_images_have_distance_and_gradient_zero(channels: int, distance: Perceptual) -> None:
    images = drawn(2, channels, 32, 32)
    reconstruction = images.clone().requires_grad_()
    value = distance(images, reconstruction)
    value.sum().backward()
    assert value.tolist() == [0, 0] and reconstruction.grad is not None and not bool(reconstruction.grad.any())


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
def test_every_channel_counts_and_the_distance_is_symmetric(channels: int, distance: Perceptual) -> None:
    images = drawn(1, channels, 32, 32)
    for channel in range(channels):
        other = images.clone()
        other[:, channel] = drawn(1, 32, 32, purpose="other")
        there, back = distance(images, other), distance(other, images)
        assert there > 1e-3
        torch.testing.assert_close(there, back, rtol=1e-12, atol=0)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_the_distance_of_an_image_does_not_depend_on_its_batch(channels: int, distance: Perceptual) -> None:
    images, reconstruction = (drawn(4, channels, 24, 40, purpose=p) for p in ("images", "reconstruction"))
    whole = distance(images, reconstruction)
    alone = [distance(images[i : i + 1], reconstruction[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-9, atol=0)


def test_images_that_are_not_rgb_are_shown_as_pictures_that_are(distance: Perceptual) -> None:
    images, other = (drawn(2, 7, 32, 32, purpose=p) for p in ("images", "other"))

    def rgb(*channels: int) -> Tensor:
        return distance(images[:, channels], other[:, channels])

    expected = {
        1: rgb(0, 0, 0),
        2: (rgb(0, 0, 0) + rgb(1, 1, 1)) / 2,
        3: rgb(0, 1, 2),
        4: (3 * rgb(0, 1, 2) + rgb(3, 3, 3)) / 4,
        5: (rgb(0, 1, 2) + rgb(3, 4, 4)) / 2,
        6: (rgb(0, 1, 2) + rgb(3, 4, 5)) / 2,
        7: (rgb(0, 1, 2) + rgb(3, 4, 5) + rgb(6, 6, 6)) / 3,
    }
    for channels, value in expected.items():
        torch.testing.assert_close(distance(images[:, :channels], other[:, :channels]), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("channels", range(1, 20))
def test_the_pictures_of_an_image_show_every_channel_and_weigh_one_together(channels: int) -> None:
    triples, shares = rgb_triples(channels)
    assert {channel for triple in triples for channel in triple} == set(range(channels))
    assert sum(shares) == pytest.approx(1) and all(len(triple) == 3 for triple in triples)


def test_small_images_are_enlarged_in_proportion_and_large_ones_left_alone() -> None:
    assert resize_up(drawn(1, 3, 16, 24), 64).shape == (1, 3, 64, 96)
    assert resize_up(drawn(1, 3, 24, 16), 64).shape == (1, 3, 96, 64)
    images = drawn(1, 3, 64, 65)
    assert resize_up(images, 64) is images


def test_small_images_are_as_far_apart_as_their_enlargements(distance: Perceptual) -> None:
    small = [drawn(2, 3, 16, 16, purpose=purpose) for purpose in ("images", "other")]
    large = [F.interpolate(images, size=(32, 32), mode="bilinear") for images in small]
    torch.testing.assert_close(distance(*small), distance(*large), rtol=1e-12, atol=0)


def test_without_learned_weights_it_is_the_mean_over_maps_of_the_distance_of_unit_vectors(tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_efficientnet", "pretrained_cfg": pixels}))
    distance = Perceptual(PerceptualConfig(backbone="features", weights_file=str(tmp_path), size=32)).double()
    images, other = drawn(2, 3, 32, 32), drawn(2, 3, 32, 32, purpose="other")
    maps = zip(distance.backbone(images), distance.backbone(other), strict=True)
    expected = [(2 - 2 * F.cosine_similarity(x, y, dim=1)).mean((1, 2)) for x, y in maps]
    torch.testing.assert_close(distance(images, other), torch.stack(expected).mean(0), rtol=1e-4, atol=0)


def test_in_half_precision_the_distance_is_computed_in_float32(distance: Perceptual) -> None:
    single = copy.deepcopy(distance).float()
    images, other = drawn(2, 3, 32, 32).float(), drawn(2, 3, 32, 32, purpose="other").float()
    with torch.autocast("cpu", torch.bfloat16):
        value = single(images, other)
    assert value.dtype == torch.float32 and distance(images.double(), other.double()).dtype == torch.float64
    torch.testing.assert_close(value, single(images, other), rtol=0.05, atol=0)


def test_a_copy_is_the_same_distance_and_training_mode_changes_nothing(distance: Perceptual) -> None:
    images, other = drawn(1, 3, 32, 32), drawn(1, 3, 32, 32, purpose="other")
    assert copy.deepcopy(distance).train()(images, other).equal(distance(images, other))
    assert not any(parameter.requires_grad for parameter in distance.parameters())
