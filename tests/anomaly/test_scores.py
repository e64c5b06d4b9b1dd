"""Scores, maps, pooling and their combination, one by one."""

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from ldm.anomaly.combination import LogisticTail, combined
from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.detector import AnomalyDetector
from ldm.anomaly.maps import pooled, smoothed, weighted_map
from ldm.anomaly.scorer import ComponentWeights
from ldm.anomaly.scores import (
    ScoreParts,
    coarse_pixels,
    denoising,
    elbo,
    masked,
    reconstruction,
    reconstruction_ssim,
    shrunken,
    whitened,
)
from ldm.anomaly.subject import TrainedModel, View
from ldm.autoencoder.config import AutoencoderConfig, IdentityConfig, ViTNetworkConfig
from ldm.autoencoder.model import create, create_pixels
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.gaussian import LatentGaussian, fit_gaussian
from ldm.evaluation.metrics import ssim
from ldm.randomness import generator
from ldm.training.processes import Processes
from tests.support.diffusion_models import IMAGE, kl_autoencoder
from tests.support.normal_images import data_of, subspace_images

CONFIG = DetectorConfig(blur=0, draws=2, sigmas=(0.5, 2.0), hidden_sets=3)


def test_logistic_tail_is_the_survival_of_the_logistic_law_it_was_drawn_from() -> None:
    uniform = (torch.arange(20000).double() + 0.5) / 20000
    scores = 3 + 2 * torch.logit(uniform)
    tail = LogisticTail.fit(scores)
    assert (tail.location, tail.scale) == (pytest.approx(3, abs=0.01), pytest.approx(2, rel=0.01))
    for chance in (0.9, 0.5, 0.01):
        score = 3 + 2 * math.log((1 - chance) / chance)  # exceeded with this probability
        assert float(tail.surprise(torch.tensor(score))) == pytest.approx(-math.log(chance), rel=0.02)


def test_a_combination_orders_what_lies_beyond_every_normal_score_and_is_infinite_for_what_is_not_finite() -> None:
    tails = {"a": LogisticTail(0, 1), "b": LogisticTail(5, 10)}
    total = combined({"a": torch.tensor([0.0, 50, 60, math.nan]), "b": torch.tensor([-1e9, 0.0, 0, 0])}, tails)
    assert total[0] == pytest.approx(math.log(2)) and total[2] - total[1] == pytest.approx(10)
    assert total[3] == math.inf
    assert combined({"a": torch.tensor([3.0, -math.inf])}, {}).tolist() == [3.0, math.inf]


def test_pooling_takes_the_mean_of_the_highest_hundredth_and_keeps_what_is_not_a_number() -> None:
    maps = torch.arange(400.0).view(1, 1, 20, 20).repeat(2, 1, 1, 1)
    maps[1, 0, 3, 3] = math.nan
    assert pooled(maps, "top")[0] == 397.5 and pooled(maps, "max")[0] == 399
    assert pooled(maps, "top")[1].isnan() and pooled(maps, "max")[1].isnan()


def test_a_map_has_the_size_of_the_image_and_its_mean_survives_smoothing() -> None:
    coarse, fine = torch.rand(2, 4, 4, generator=generator(0, "a")), torch.rand(2, 16, 16, generator=generator(0, "b"))
    flat = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    found = weighted_map([coarse, fine, flat], (1.0, 2.0, 3.0), (16, 16), 1.5)
    assert found is not None and found.shape == (2, 1, 16, 16)
    expected = coarse.mean((1, 2)) + 2 * fine.mean((1, 2)) + 3 * flat.flatten()
    torch.testing.assert_close(found.mean((1, 2, 3)), expected, rtol=0.03, atol=0)
    assert weighted_map([flat], (1.0,), (16, 16), 1.5) is None
    point = torch.zeros(1, 1, 16, 16).index_put((*torch.tensor([[0], [0], [8], [8]]),), torch.ones(()))
    assert smoothed(point, 2.0)[0, 0, 8, 8] == pytest.approx(1 / (2 * math.pi * 4), rel=0.05)


def test_whitening_gives_the_mahalanobis_distance() -> None:
    latents = subspace_images(80, (2, 3, 3), noise=0.3)
    gaussian = fit_gaussian(latents).double()
    covariance = gaussian.basis * (gaussian.eigenvalues - gaussian.rest) @ gaussian.basis.T
    covariance += gaussian.rest * torch.eye(18)
    centered = (latents.double() - gaussian.mean).flatten(1)
    expected = (centered @ torch.linalg.inv(covariance) * centered).sum(1)
    found = whitened(gaussian, latents.double()).square().flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64), (3, 33, 20), (1, 1, 2000)])
def test_density_of_pixels_is_of_a_thousand_numbers_at_most_that_keep_the_mean(shape: tuple[int, int, int]) -> None:
    model = TrainedModel("pixels", create_pixels(shape), None, masks=False)
    flat = torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, *shape)
    found = coarse_pixels(model.view(flat), 0.7)
    assert found[0].numel() <= 1024 and 4 * found[0].numel() > min(1024, flat[0].numel()) / 2
    torch.testing.assert_close(found, flat[:, :1, :1, :1].expand_as(found))


def test_shrinkage_adds_a_tenth_of_the_mean_variance_to_every_variance() -> None:
    gaussian = LatentGaussian((4, 1, 1), 2)
    gaussian.eigenvalues.copy_(torch.tensor([7.0, 3.0]))
    found = shrunken(gaussian)  # variances 7, 3, 1, 1
    torch.testing.assert_close(found.eigenvalues, torch.tensor([7.3, 3.3]))
    assert float(found.rest) == pytest.approx(1.3)


def test_a_shifted_edge_counts_less_under_the_blur_and_a_missing_part_as_much() -> None:
    class Fixed(View):
        """Images of a bar whose reconstruction is nothing but a shift of it, or lacks it."""

        def __init__(self, images: torch.Tensor, rebuilt: torch.Tensor):
            super().__init__(images, images)
            self.rebuilt = rebuilt

        @property
        def reconstruction(self) -> torch.Tensor:
            return self.rebuilt

    bar = torch.zeros(2, 1, 16, 16)
    bar[:, :, 4:12, 6:9] = 1.0
    rebuilt = torch.stack([bar[0].roll(1, -1) * 0.5 + bar[0] * 0.5, torch.zeros(1, 16, 16)])
    sharp, blurred = (
        reconstruction(Fixed(bar, rebuilt), ScoreParts(DetectorConfig(blur=blur)))[0].sum((1, 2)) for blur in (0, 1.0)
    )
    assert blurred[0] / sharp[0] < 0.5 * blurred[1] / sharp[1]


def test_ssim_map_has_the_mean_of_ssim_inside_and_repeats_it_at_the_border() -> None:
    model = TrainedModel("kl", kl_autoencoder(), None, masks=False)
    view = model.view(subspace_images(3, IMAGE))
    (found,) = reconstruction_ssim(view, ScoreParts(CONFIG))
    assert found.shape == (3, 16, 16)
    inside = 1 - found[:, 5:11, 5:11].mean((1, 2))
    torch.testing.assert_close(inside, ssim(view.images, view.reconstruction).to(inside))
    assert torch.equal(found[:, 0, 5:11], found[:, 5, 5:11])


class Zero(torch.nn.Module):
    """A network of zeros."""

    def forward(self, scaled: torch.Tensor, *condition: object) -> torch.Tensor:
        return torch.zeros_like(scaled)


def test_denoising_errors_are_those_of_the_denoiser_with_the_same_noise_for_every_image() -> None:
    """A network of zeros: D(y) = y / (1 + σ²), so the error of x = 0 is the same for all, σ² n² / (1 + σ²)²."""
    model = TrainedModel("pixels", create_pixels(IMAGE), Denoiser(Zero()), masks=False)
    components = denoising(model.view(torch.zeros(3, *IMAGE)), ScoreParts(CONFIG))
    assert [component.shape for component in components] == [(3, 16, 16)] * 2
    for level, component in zip(CONFIG.sigmas, components, strict=True):
        assert torch.equal(component[0], component[2])
        noise = torch.stack([torch.randn(IMAGE, generator=generator(0, "detection noise", draw)) for draw in (0, 1)])
        expected = ((level * noise / (1 + level**2)) ** 2).mean((0, 1))
        torch.testing.assert_close(component[1], expected)


def test_components_weigh_by_their_own_deviation_so_that_the_largest_noise_does_not_drown_the_others() -> None:
    means = torch.randn(50, 2, generator=generator(0, "means"), dtype=torch.float64) * torch.tensor([0.01, 10.0]) + 20
    weights = ComponentWeights.fit("denoising", means).weights
    scaled = means @ torch.diag(torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(scaled.std(0), torch.ones(2, dtype=torch.float64))


def test_elbo_is_reconstruction_in_nats_at_the_likeliest_variance_and_kl() -> None:
    model = TrainedModel("kl", kl_autoencoder(), None, masks=False)
    view = model.view(subspace_images(4, IMAGE))
    components = elbo(view, ScoreParts(CONFIG))
    means = torch.stack([component.double().flatten(1).mean(1) for component in components], 1)
    fitted = ComponentWeights.fit("elbo", means)
    score = means @ torch.tensor(fitted.weights, dtype=torch.float64) + fitted.offset
    nll = sum(0.5 * (1 + math.log(2 * math.pi * float(variance))) for variance in means[:, :3].mean(0))
    kl = view.posterior.kl().double().mean() / (16 * 16)
    assert float(score.mean()) == pytest.approx(nll + float(kl), rel=1e-5)


def test_masked_error_of_a_patch_does_not_change_with_what_the_patch_shows_but_for_the_target() -> None:
    """The encoder never sees the patch that it is judged by: its rebuilt pixels do not depend on them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ViTNetworkConfig(patch=4, width=8, heads=2, depth=1, decoder_width=8, decoder_heads=2)
        autoencoder = create(AutoencoderConfig(network, IdentityConfig(channels=8)), image=IMAGE)
    model = TrainedModel("vit", autoencoder, None, masks=True)
    images = subspace_images(1, IMAGE).repeat(3, 1, 1, 1)
    images[1, :, :4, :4] += 0.3
    images[2, :, :4, :4] -= 0.3
    (error,) = masked(model.view(images), ScoreParts(DetectorConfig(draws=1, hidden_sets=3)))
    patch = error[:, :4, :4]  # (t + .3 - r)² + (t - .3 - r)² - 2 (t - r)² = 2 · .3², if r is the same
    torch.testing.assert_close(patch[1] + patch[2] - 2 * patch[0], torch.full((4, 4), 0.18), rtol=1e-3, atol=1e-5)
    assert bool((error[0] > 0).all())


def features_folder(folder: Path) -> str:
    """A pretrained network in miniature, with random weights."""
    folder.mkdir()
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_efficientnet", num_classes=3)
    config = {"architecture": "test_efficientnet", "num_classes": 3, "pretrained_cfg": pixels}
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    return str(folder)


def test_features_find_what_their_components_cannot_rebuild_and_compare_reconstructions(tmp_path: Path) -> None:
    folder, normal = features_folder(tmp_path / "features"), subspace_images(60, IMAGE)
    odd = normal[:6].clone()
    odd[:3] = odd[:3].flip(-1) * -1
    config = DetectorConfig(alpha=0.2)
    detector = AnomalyDetector.fit(f"features:{folder}", data_of(normal), config, processes=Processes("cpu"))
    assert detector.scores == ["reconstruction", "pixel-density"]
    found = detector.score(odd)
    assert found.pred_score[:3].min() > found.pred_score[3:].max()
    assert found.anomaly_map is not None and found.anomaly_map.shape == (6, 1, 16, 16)
    compared = DetectorConfig(scores=("reconstruction-features",), alpha=0.2, backbone=folder)
    detector = AnomalyDetector.fit("pca:5", data_of(normal), compared, processes=Processes("cpu"))
    detector.save(tmp_path / "detector")
    found = AnomalyDetector.load(tmp_path / "detector", device="cpu").score(odd)
    assert torch.equal(found.pred_score, detector.score(odd).pred_score)
    assert found.pred_score[:3].min() > found.pred_score[3:].median()
