"""PSNR in closed form, linear codes against NumPy's singular values, Fréchet distances between known Gaussians."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm.evaluation.metrics import (
    frechet_distance,
    kernel_distance,
    linear_restoration_psnr,
    ms_ssim,
    patch_pca_psnr,
    patches,
    patches_of,
    pca_psnr,
    principal_components,
    psnr,
    ssim,
)


def smooth_images(count: int, seed: int, channels: int = 2, size: int = 4) -> Tensor:
    """Images in [-1, 1] whose pixels depend on few numbers, with a little noise."""
    values = channels * size * size
    mixing = torch.randn(5, values, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 5, generator=generator, dtype=torch.float64) @ mixing
    rows = rows + 0.3 * torch.randn(count, values, generator=generator, dtype=torch.float64)
    return torch.tanh(rows / 3).view(count, channels, size, size)


def numpy_pca_psnr(train: Tensor, held_out: Tensor, numbers: int) -> float:
    """Mean over the images of 10 log10(peak² / MSE), where the peak of [-1, 1] is 2."""
    rows, others = train.flatten(1).numpy(), held_out.flatten(1).numpy()
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean, full_matrices=False)[2][:numbers]
    reconstruction = np.clip((others - mean) @ axes.T @ axes + mean, -1, 1)
    return float(np.mean(10 * np.log10(4 / np.mean((others - reconstruction) ** 2, axis=1))))


@pytest.mark.parametrize("difference", [1.0, 0.1, 2 / 255])
def test_the_psnr_of_a_constant_difference_is_known(difference: float):
    images = torch.zeros(3, 2, 4, 5, dtype=torch.float64)
    expected = torch.full((3,), -20 * math.log10(difference / 2), dtype=torch.float64)
    torch.testing.assert_close(psnr(images, images + difference), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(psnr(images, images - difference), expected, rtol=1e-12, atol=0)


def test_black_for_white_is_zero_decibels_and_no_difference_is_a_hundred():
    white = torch.ones(1, 1, 3, 3)
    assert psnr(white, -white).item() == 0 and psnr(white, white).item() == 100


def test_a_reconstruction_beyond_the_range_counts_as_its_end():
    white = torch.ones(2, 3, 4, 4)
    assert psnr(white, white + 5).tolist() == [100, 100]
    assert torch.equal(psnr(0 * white, 7 * white), psnr(0 * white, white))


def test_psnr_is_one_number_per_image():
    images = torch.zeros(2, 1, 2, 2)
    reconstruction = torch.stack([torch.full((1, 2, 2), 0.2), torch.tensor([[[0.4, 0.0], [0.0, 0.0]]])])
    assert torch.allclose(psnr(images, reconstruction), torch.tensor([20.0, 20.0], dtype=torch.float64))


@pytest.mark.parametrize("count", [20, 300])
@pytest.mark.parametrize("numbers", [1, 5, 12])
def test_the_psnr_of_pca_is_that_of_numpys_singular_vectors(count: int, numbers: int):
    train, held_out = smooth_images(count, 0), smooth_images(25, 1)
    found = pca_psnr(train, held_out, numbers)
    assert found == pytest.approx(numpy_pca_psnr(train, held_out, numbers), rel=1e-9)


def test_principal_directions_do_not_depend_on_which_matrix_they_come_from():
    rows = smooth_images(20, 0).flatten(1)
    mean, directions = principal_components(rows, 6)  # fewer rows than values: their Gram matrix
    again, others = principal_components(rows.repeat(4, 1), 6)  # the same spectrum: the covariance
    torch.testing.assert_close(mean, again, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(directions @ directions.T, others @ others.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(directions.T @ directions, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_no_linear_code_of_the_training_set_is_better_than_pca():
    rows = smooth_images(60, 0).flatten(1)
    mean, directions = principal_components(rows, 4)
    generator = torch.Generator().manual_seed(0)

    def error(axes: Tensor) -> Tensor:
        return (rows - mean - (rows - mean) @ axes @ axes.T).square().mean()

    for size in (1e-3, 0.1, 1.0):
        moved = directions + size * torch.randn(directions.shape, generator=generator, dtype=torch.float64)
        assert error(torch.linalg.qr(moved).Q) > error(directions)


def test_pca_with_as_many_numbers_as_values_is_perfect():
    train, held_out = smooth_images(200, 0), smooth_images(10, 1)
    assert pca_psnr(train, held_out, 32) == 100


def test_pca_is_not_defined_where_the_images_are_too_few():
    train, held_out = smooth_images(20, 0), smooth_images(5, 1)
    assert pca_psnr(train, held_out, 20) is None and pca_psnr(train, held_out, 21) is None
    assert pca_psnr(train, held_out, 19) is not None


def test_the_same_picture_many_times_does_not_harm_pca():
    few, held_out = smooth_images(6, 0), smooth_images(10, 1)
    once, often = pca_psnr(few, held_out, 5), pca_psnr(few.repeat(4, 1, 1, 1), held_out, 10)
    assert often == pytest.approx(once, abs=0.5)
    assert pca_psnr(torch.ones(12, 2, 4, 4), torch.ones(3, 2, 4, 4), 5) == 100


def test_float32_images_give_the_psnr_of_float64():
    train, held_out = smooth_images(40, 0), smooth_images(10, 1)
    assert pca_psnr(train.float(), held_out.float(), 5) == pytest.approx(pca_psnr(train, held_out, 5), rel=1e-4)


def test_patches_hold_every_value_once_and_stay_with_their_image():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    found = patches(images, 2)
    assert found.shape == (2 * 6, 12)
    assert torch.equal(found[1], images[0, :, 0:2, 2:4].flatten()) and torch.equal(
        found[9], images[1, :, 2:4, 0:2].flatten()
    )
    assert torch.equal(patches_of(images, 2).sort(1).values, images.flatten(1))


def test_patch_pca_with_all_numbers_is_perfect():
    assert patch_pca_psnr(smooth_images(30, 0), smooth_images(10, 1), 2, 8) == 100


def test_patch_pca_of_whole_images_is_pca():
    train, held_out = smooth_images(60, 0), smooth_images(10, 1)
    assert patch_pca_psnr(train, held_out, 4, 7) == pytest.approx(pca_psnr(train, held_out, 7), rel=1e-12)


def test_more_numbers_are_never_worse_on_the_training_set():
    train = smooth_images(60, 0)

    def squared_error(numbers: int) -> Tensor:
        rows = patches(train, 2)
        mean, directions = principal_components(rows, numbers)
        return (rows - mean - (rows - mean) @ directions @ directions.T).square().mean()

    errors = torch.stack([squared_error(numbers) for numbers in range(1, 9)])
    assert bool((errors.diff() < 0).all()) and errors[-1] < 1e-20


def test_psnr_is_torchmetrics_on_bytes():
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = (torch.randint(0, 256, (5, 3, 8, 8), generator=generator(seed)) for seed in (0, 1))
    theirs = peak_signal_noise_ratio(second.double(), first.double(), data_range=255.0, reduction="none", dim=(1, 2, 3))
    ours = psnr(*(images.double() / 127.5 - 1 for images in (first, second)))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)  # log(10) is a float32 there


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, channels: int, height: int, width: int, noise: float = 20) -> tuple[Tensor, Tensor]:
    """Noisy gradients of 8 bits, and the same with more noise."""
    ramp = torch.linspace(0, 200, height)[:, None] + torch.linspace(0, 40, width)
    first = ramp + 15 * torch.randn(count, channels, height, width, generator=generator(0))
    second = first + noise * torch.randn(first.shape, generator=generator(1))
    return first.clamp(0, 255).round().byte(), second.clamp(0, 255).round().byte()


def of_bytes(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


@pytest.mark.parametrize("size", [(32, 20), (11, 11), (12, 40)])
def test_an_image_is_similar_to_itself(size: tuple[int, int]):
    images = torch.rand(3, 2, *size, generator=generator(0), dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(ssim(images, images), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (ssim(images, -images) < 1).all()


def test_the_similarity_of_two_flat_images_is_known():
    """Without variance only the luminance term is left: (2ab + C) / (a² + b² + C) with C = (0.01 * 255)²."""
    first, second = torch.full((1, 3, 16, 16), 200 / 127.5 - 1), torch.full((1, 3, 16, 16), 50 / 127.5 - 1)
    constant = (0.01 * 255) ** 2
    expected = (2 * 200 * 50 + constant) / (200**2 + 50**2 + constant)
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 11, 11), (3, 40, 21), (3, 64, 64), (4, 12, 30)])
def test_ssim_is_not_raised_by_borders_that_are_reflected_it_is_scikit_images(shape: tuple[int, int, int]):
    """And so that of Wang et al.: the windows that lie wholly inside the image."""
    from skimage.metrics import structural_similarity

    first, second = pictures(2, *shape)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    theirs = [
        structural_similarity(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), channel_axis=2, **options)
        for a, b in zip(first, second, strict=True)
    ]
    assert ssim(of_bytes(first), of_bytes(second)).tolist() == pytest.approx(theirs, abs=1e-6)


def test_ssim_is_torchmetrics_where_its_windows_lie_inside_the_image():
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = (pixels.double() for pixels in pictures(2, 3, 24, 17))
    options = {"data_range": 255.0, "return_full_image": True, "reduction": "none"}
    _, whole = structural_similarity_index_measure(second, first, **options)
    inside = whole[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(of_bytes(first), of_bytes(second)), inside, rtol=0, atol=1e-6)


def test_similarity_is_one_number_per_image_whatever_else_is_in_the_batch():
    images, other = (torch.rand(4, 3, 16, 16, generator=generator(seed)) for seed in (0, 1))
    alone = torch.cat([ssim(images[i : i + 1], other[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(ssim(images, other), alone, rtol=0, atol=1e-6)
    assert ssim(images[:1], other[:1]).shape == (1,)


def windows(image: np.ndarray, side: int = 11) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(image, (side, side))


def contrast_and_luminance(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cs and l of Wang et al. 2003, equations 1 to 3, of a gray image from 0 to 255, in every window, by NumPy."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x, y = windows(first), windows(second)
    mx, my = ((each * weights).sum((2, 3)) for each in (x, y))
    dx, dy = x - mx[:, :, None, None], y - my[:, :, None, None]
    vx, vy, cov = ((each * weights).sum((2, 3)) for each in (dx * dx, dy * dy, dx * dy))
    return (2 * cov + c2) / (vx + vy + c2), (2 * mx * my + c1) / (mx**2 + my**2 + c1)


def test_multi_scale_similarity_is_its_definition_over_windows_inside_the_image():
    """Five scales; sides of 176 and 161 to 175 pixels, so that odd ones are halved too."""
    first, second = pictures(1, 2, 176, 165, noise=60)
    expected = []
    for x, y in zip(first[0].double().numpy(), second[0].double().numpy(), strict=True):
        product = 1.0
        for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            if scale:
                even = ((0, x.shape[0] % 2), (0, x.shape[1] % 2))
                x, y = (np.pad(each, even, mode="symmetric") for each in (x, y))
                x, y = ((e[::2, ::2] + e[1::2, ::2] + e[::2, 1::2] + e[1::2, 1::2]) / 4 for e in (x, y))
            contrast, luminance = contrast_and_luminance(x, y)
            product *= (contrast if scale < 4 else contrast * luminance).mean() ** power
        expected.append(product)
    found = ms_ssim(of_bytes(first), of_bytes(second)).item()
    assert found == pytest.approx(np.mean(expected), abs=1e-6) and 0.3 < found < 0.98


def test_multi_scale_similarity_is_about_that_of_torchmetrics_whose_last_scale_reflects_its_borders():
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    first, second = pictures(1, 1, 192, 192, noise=40)
    pair = second.double(), first.double()
    theirs = multiscale_structural_similarity_index_measure(*pair, data_range=255.0).item()
    assert ms_ssim(of_bytes(first), of_bytes(second)).item() == pytest.approx(theirs, abs=0.01)


def test_images_that_are_opposites_at_some_scale_have_no_multi_scale_similarity_rather_than_none_that_is_a_number():
    """A negative factor to a power that is not whole is not a number."""
    images = torch.rand(1, 1, 161, 161, generator=generator(0)) * 2 - 1
    assert ms_ssim(images, -images).item() == 0
    assert ms_ssim(images, images).item() == pytest.approx(1, abs=1e-9)


def with_moments(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """The rows mapped linearly so that their mean and unbiased covariance are exactly these."""
    centered = rows - rows.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(centered.T.cov()), centered.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ white).T + mean


def features(count: int, dimensions: int, seed: int) -> Tensor:
    mixing = torch.randn(dimensions, dimensions, generator=generator(100), dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator(seed), dtype=torch.float64) @ mixing


def test_the_frechet_distance_of_gaussians_with_commuting_covariances_is_known():
    """|m1 - m2|² + Σ (s1 - s2)², with the standard deviations along their common axes."""
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator(3), dtype=torch.float64)).Q
    std = torch.rand(2, 5, generator=generator(4), dtype=torch.float64) + 0.1
    mean = torch.randn(2, 5, generator=generator(5), dtype=torch.float64)
    first, second = (
        with_moments(features(n, 5, n), mean[i], rotation @ torch.diag(std[i] ** 2) @ rotation.T)
        for i, n in enumerate((50, 70))
    )
    expected = (mean[0] - mean[1]).square().sum() + (std[0] - std[1]).square().sum()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("counts", [(300, 200), (300, 20), (20, 12)])
def test_the_frechet_distance_is_the_one_by_matrix_roots_with_many_and_with_few_images(counts: tuple[int, int]):
    first, second = features(counts[0], 30, 0), 1.3 * features(counts[1], 30, 1) + 0.2
    covariance = first.T.cov(), second.T.cov()
    values, vectors = torch.linalg.eigh(covariance[0])
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance[1] @ root).clamp_min(0).sqrt().sum()
    expected = (first.mean(0) - second.mean(0)).square().sum() + covariance[0].trace() + covariance[1].trace()
    assert frechet_distance(first, second) == pytest.approx((expected - 2 * cross).item(), rel=1e-4)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), rel=1e-9)


def test_the_frechet_distance_is_scipys():
    linalg = pytest.importorskip("scipy.linalg")
    first, second = features(200, 12, 0).numpy(), features(150, 12, 1).numpy() * 0.7 + 1
    covariance = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(
        covariance[0] + covariance[1] - 2 * linalg.sqrtm(covariance[0] @ covariance[1]).real
    )
    found = frechet_distance(torch.from_numpy(first), torch.from_numpy(second))
    assert found == pytest.approx(expected, rel=1e-9)


class Flat(nn.Module):
    """Features that are the bytes themselves, as torchmetrics wants its extractors."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


def test_the_frechet_distance_is_the_fid_of_torchmetrics_with_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    first, second = (
        torch.randint(0, high, (60, 3, 2, 2), dtype=torch.uint8, generator=generator(high)) for high in (200, 256)
    )
    fid = FrechetInceptionDistance(feature=Flat()).set_dtype(torch.float64)
    fid.update(first, real=True)
    fid.update(second, real=False)
    expected = fid.compute().item()
    assert frechet_distance(Flat()(first), Flat()(second)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("counts", "size"), [((90, 90), 1000), ((40, 40), 40), ((110, 130), 40)])
def test_the_kernel_distance_is_the_kid_of_torch_fidelity_with_the_same_features(counts: tuple[int, int], size: int):
    """To the digit, the random subsets of more images being theirs."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = features(counts[0], 8, 0), 1.2 * features(counts[1], 8, 1)
    options = {"kid_subset_size": min(size, *counts), "kid_subsets": 100 if max(counts) > size else 1}
    theirs = kid_features_to_metric(first, second, rng_seed=2020, verbose=False, **options)
    expected = theirs["kernel_inception_distance_mean"]
    assert kernel_distance(first, second, subset_size=size) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(first.float(), second.float(), subset_size=size) == pytest.approx(expected, rel=1e-4)


def test_the_kernel_distance_of_few_images_is_the_unbiased_one_of_all_of_them():
    """Written out: all pairs of different rows of one set, and all pairs between the sets, which may differ in size."""
    first, second = features(5, 3, 0).tolist(), features(7, 3, 1).tolist()

    def kernel(x: list[float], y: list[float]) -> float:
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 3 + 1) ** 3

    within = [np.mean([kernel(x, y) for x in rows for y in rows if x is not y]) for rows in (first, second)]
    expected = sum(within) - 2 * np.mean([kernel(x, y) for x in first for y in second])
    found = kernel_distance(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_equal_distributions_is_not_biased_by_few_images():
    """Where the Fréchet distance is: the mean over many small sets is about 0."""
    values = [kernel_distance(features(10, 3, 2 * n), features(10, 3, 2 * n + 1)) for n in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20 and min(values) < 0
    assert np.mean([frechet_distance(features(10, 3, 2 * n), features(10, 3, 2 * n + 1)) for n in range(9)]) > 0.3


def test_the_frechet_distance_is_the_fid_of_torch_fidelity_with_the_same_features():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    first, second = features(200, 12, 0), features(150, 12, 1) * 0.7 + 1
    statistics = [fid_features_to_statistics(rows) for rows in (first, second)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(first, second) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("count", [5, 300])
def test_features_are_at_no_distance_from_themselves(count: int):
    rows = features(count, 30, 0)
    assert 0 <= frechet_distance(rows, rows) < 1e-8 * rows.square().sum(1).mean()
    assert frechet_distance(rows, rows + 1) == pytest.approx(30, rel=1e-6)


# ---- the best linear denoiser


def fields(count: int, shape: tuple[int, int, int], seed: int, mean: float = 0.1) -> tuple[Tensor, Tensor]:
    """Gaussian images that no restoration brings near black or white, and the covariance that they are drawn with."""
    values = math.prod(shape)
    mixing = torch.randn(values, values, generator=generator(50), dtype=torch.float64) / values**0.5
    mixing = 0.15 * mixing @ torch.diag(torch.linspace(0.05, 1.5, values, dtype=torch.float64))
    rows = torch.randn(count, values, generator=generator(seed), dtype=torch.float64) @ mixing.T
    return (rows + mean).view(count, *shape), mixing @ mixing.T


def noisy(images: Tensor, seed: int, sigma: float = 0.15) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=generator(seed), dtype=torch.float64)


def masked(images: Tensor, seed: int) -> Tensor:
    """A third of the values are 0."""
    return images.masked_fill(torch.rand(images.shape, generator=generator(seed), dtype=torch.float64) < 1 / 3, 0)


def least_squares(clean: Tensor, corrupted: list[Tensor], seen: Tensor) -> Tensor:
    """By NumPy: what the affine map that fits best, a constant included, makes of the images `seen`."""
    rows, others = (
        np.pad(each.flatten(1).numpy(), ((0, 0), (0, 1)), constant_values=1) for each in (torch.cat(corrupted), seen)
    )
    found = np.linalg.lstsq(rows, clean.flatten(1).repeat(len(corrupted), 1).numpy(), rcond=None)[0]
    return torch.from_numpy(others @ found).view_as(seen)


@pytest.mark.parametrize("mean", [0.0, 0.1, -0.2])
def test_the_best_linear_denoiser_of_gaussian_noise_is_the_wiener_filter(mean: float):
    """E[x | y] = m + C (C + s² I)⁻¹ (y - m), with the covariance and the mean of the law itself."""
    (clean, covariance), (others, _) = fields(4000, (1, 4, 4), 1, mean), fields(1000, (1, 4, 4), 2, mean)
    seen, versions = noisy(others, 3), [noisy(clean, seed) for seed in range(10, 14)]
    wiener = covariance @ torch.linalg.inv(covariance + 0.15**2 * torch.eye(16, dtype=torch.float64))
    best = ((seen.flatten(1) - mean) @ wiener.T + mean).view_as(others)
    expected, found = psnr(others, best).mean().item(), linear_restoration_psnr(clean, versions, others, seen)
    assert expected > psnr(others, seen).mean().item() + 1
    assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("corruption", [noisy, masked], ids=["noise", "mask"])
@pytest.mark.parametrize("mean", [0.0, -0.4])
def test_no_linear_map_with_a_constant_restores_the_training_images_better(corruption, mean: float):
    """Masks change the mean: a map that kept the mean of clean images for that of corrupted ones would be beaten."""
    clean, _ = fields(1000, (1, 4, 4), 1, mean)
    versions = [corruption(clean, seed) for seed in range(10, 14)]
    again, seen = clean.repeat(4, 1, 1, 1), torch.cat(versions)
    expected = psnr(again, least_squares(clean, versions, seen)).mean().item()
    assert linear_restoration_psnr(clean, versions, again, seen) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("corruption", [noisy, masked, lambda images, seed: images], ids=["noise", "mask", "nothing"])
def test_the_best_linear_denoiser_is_at_least_as_good_as_doing_nothing(corruption):
    (clean, _), (others, _) = fields(1000, (3, 4, 4), 1), fields(500, (3, 4, 4), 2)
    seen = corruption(others, 3)
    found = linear_restoration_psnr(clean, [corruption(clean, seed) for seed in range(10, 14)], others, seen)
    assert found >= min(psnr(others, seen).mean().item(), 90)


@pytest.mark.parametrize(
    ("shape", "most", "side"),
    [((1, 8, 8), 16, 4), ((2, 8, 8), 16, 2), ((1, 6, 6), 35, 3), ((1, 4, 6), 1024, 2), ((1, 4, 12), 1024, 4)],
)
def test_large_images_and_those_that_are_not_square_are_restored_in_squares(shape, most: int, side: int):
    """The largest that tile the image and have at most so many values: as if each were an image of its own."""
    (clean, _), (others, _) = fields(600, shape, 1), fields(40, shape, 2)
    versions, seen = [noisy(clean, seed) for seed in (10, 11)], noisy(others, 3)
    found = linear_restoration_psnr(clean, versions, others, seen, most=most)

    def squares(images: Tensor) -> Tensor:
        return patches(images, side).view(-1, shape[0], side, side)

    restored = least_squares(squares(clean), [squares(each) for each in versions], squares(seen))
    expected = psnr(patches_of(others, side), restored.reshape(40, -1)).mean().item()
    assert found == pytest.approx(expected, abs=0.01) and found > psnr(others, seen).mean().item()


def test_images_whose_sides_share_no_factor_are_restored_value_by_value():
    (clean, _), (others, _) = fields(600, (1, 3, 5), 1), fields(40, (1, 3, 5), 2)
    versions, seen = [noisy(clean, seed) for seed in (10, 11)], noisy(others, 3)
    found = linear_restoration_psnr(clean, versions, others, seen)
    values, grainy = clean.flatten().repeat(2), torch.cat(versions).flatten()
    slope = ((values - values.mean()) * (grainy - grainy.mean())).mean() / grainy.var()
    expected = psnr(others, values.mean() + slope * (seen - grainy.mean())).mean().item()
    assert found == pytest.approx(expected, abs=0.01)


def test_a_pixel_of_more_channels_than_a_denoiser_can_be_fitted_to_is_no_crash():
    clean, _ = fields(20, (6, 2, 2), 1)
    found = linear_restoration_psnr(clean, [noisy(clean, 2)], clean, noisy(clean, 3), most=5)
    assert math.isfinite(found)


def test_the_best_linear_denoiser_does_not_depend_on_the_float_type():
    (clean, _), (others, _) = fields(300, (1, 4, 4), 1), fields(50, (1, 4, 4), 2)
    given = clean, [noisy(clean, 10)], others, noisy(others, 3)
    single = clean.float(), [given[1][0].float()], others.float(), given[3].float()
    assert linear_restoration_psnr(*single) == pytest.approx(linear_restoration_psnr(*given), abs=1e-4)


def test_values_kept_from_an_image_count_for_the_linear_denoiser_too():
    clean = (torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 3).clamp(-1, 1)
    noisy = [clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    keep_mask = torch.zeros(clean.shape, dtype=torch.bool)
    plain = linear_restoration_psnr(clean, noisy, clean, noisy[0])
    assert linear_restoration_psnr(clean, noisy, clean, noisy[0], keep_mask) == plain
    keep_mask[..., :2] = True
    assert linear_restoration_psnr(clean, noisy, clean, noisy[0], keep_mask) > plain + 2
    assert linear_restoration_psnr(clean, noisy, clean, noisy[0], ~torch.zeros_like(keep_mask)) == 100
