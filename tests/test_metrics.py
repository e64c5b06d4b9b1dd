"""PSNR in closed form, and linear codes against NumPy's singular values."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.metrics import patch_pca_psnr, patches, patches_of, pca_psnr, principal_components, psnr


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


def test_pca_has_no_figure_where_the_images_are_too_few():
    train, held_out = smooth_images(20, 0), smooth_images(5, 1)
    assert pca_psnr(train, held_out, 20) is None and pca_psnr(train, held_out, 21) is None
    assert pca_psnr(train, held_out, 19) is not None


def test_the_same_picture_many_times_does_not_harm_pca():
    few, held_out = smooth_images(6, 0), smooth_images(10, 1)
    once, often = pca_psnr(few, held_out, 5), pca_psnr(few.repeat(4, 1, 1, 1), held_out, 10)
    assert often == pytest.approx(once, abs=0.5)
    assert pca_psnr(torch.ones(12, 2, 4, 4), torch.ones(3, 2, 4, 4), 5) == 100


def test_float32_images_give_the_figure_of_float64():
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
