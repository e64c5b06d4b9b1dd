"""PSNR in closed form, linear codes against NumPy's singular values, Fréchet distances between known Gaussians."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm.evaluation.metrics import (
    frechet_distance,
    linear_restoration_psnr,
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


@pytest.mark.parametrize("size", [(32, 20), (11, 11), (10, 12), (6, 6), (3, 9), (2, 2), (1, 5)])
def test_an_image_is_similar_to_itself_at_any_size(size: tuple[int, int]):
    images = torch.rand(3, 2, *size, generator=generator(0), dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(ssim(images, images), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (ssim(images, -images) < 1).all()


def test_the_similarity_of_two_flat_images_is_known():
    """Without variance only the luminance term is left: (2ab + C) / (a² + b² + C) with C = (0.01 * 255)²."""
    first, second = torch.full((1, 3, 16, 16), 200 / 127.5 - 1), torch.full((1, 3, 16, 16), 50 / 127.5 - 1)
    constant = (0.01 * 255) ** 2
    expected = (2 * 200 * 50 + constant) / (200**2 + 50**2 + constant)
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("side", "window"), [(15, 11), (11, 11), (10, 9), (6, 5)])
def test_similarity_is_the_mean_over_windows_written_out(side: int, window: int):
    """Wang et al. 2004, equation 13, with Gaussian weights."""
    images, other = (torch.rand(1, 1, side, side, generator=generator(s), dtype=torch.float64) for s in (0, 1))
    radius = window // 2
    sigma = 1.5 if window == 11 else radius / 3.5
    line = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * sigma**2))
    weight = (line[:, None] * line / line.sum() ** 2).flatten()
    pad = nn.ReflectionPad2d(radius)
    x, y = (pad(pixels).unfold(2, window, 1).unfold(3, window, 1).flatten(4)[0, 0] for pixels in (images, other))

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(-1)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(2 * images - 1, 2 * other - 1).item() == pytest.approx(expected.mean().item(), rel=1e-9)


def test_similarity_is_one_number_per_image_whatever_else_is_in_the_batch():
    images, other = (torch.rand(4, 3, 16, 16, generator=generator(seed)) for seed in (0, 1))
    alone = torch.cat([ssim(images[i : i + 1], other[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(ssim(images, other), alone, rtol=0, atol=1e-6)
    assert ssim(images[:1], other[:1]).shape == (1,)


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
