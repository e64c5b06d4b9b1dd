"""The Gaussian denoiser: exact for Gaussian data, of known error for all data, and fitted for unseen latents."""

import pytest
import torch
from torch import Tensor

from ldm.diffusion.gaussian import LatentGaussian, eigenvectors, fit_gaussian, folds_of, non_increasing
from ldm.errors import ConfigError
from ldm.randomness import generator

LEVELS = (1e-3, 0.1, 0.3, 1.0, 3.0, 10.0, 80.0)
SHAPE = (2, 3, 2)
SIZE = 12


def gaussian_of(mean: Tensor, covariance: Tensor, rank: int) -> LatentGaussian:
    """The Gaussian that has the largest `rank` eigenvalues of a covariance, and the mean of the others."""
    values, vectors = (each.flip(-1) for each in torch.linalg.eigh(covariance))
    gaussian = LatentGaussian(SHAPE, rank).double()
    gaussian.mean.copy_(mean.view(SHAPE))
    gaussian.basis.copy_(vectors[:, :rank])
    gaussian.eigenvalues.copy_(values[:rank])
    gaussian.rest.fill_(values[rank:].mean() if rank < SIZE else 1)
    return gaussian


def moments() -> tuple[Tensor, Tensor]:
    """A mean and a covariance whose eigenvalues go from large to small."""
    rng = generator(0, "moments")
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=rng, dtype=torch.float64)).Q
    return torch.randn(SIZE, generator=rng, dtype=torch.float64), basis * torch.logspace(1.5, -1.5, SIZE) @ basis.mT


def matrix_of(gaussian: LatentGaussian, sigma: float) -> Tensor:
    """A of L_σ(m + u) = m + A u."""
    units = torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE)
    return (gaussian.denoise(units + gaussian.mean, sigma) - gaussian.mean).flatten(1).mT


def latents(count: int, seed: int = 0) -> Tensor:
    """Smooth random latents, 4 x 6 x 6, that are not Gaussian."""
    noise = torch.randn(count, 4, 8, 8, generator=generator(seed, "latents"))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1)
    return 3 * smooth * torch.rand(count, 1, 1, 1, generator=generator(seed, "scales"))


@pytest.mark.parametrize("sigma", LEVELS)
def test_all_components_make_the_exact_denoiser_of_gaussian_data(sigma: float) -> None:
    mean, covariance = moments()
    exact = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(SIZE, dtype=torch.float64))
    assert torch.allclose(matrix_of(gaussian_of(mean, covariance, SIZE), sigma), exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [0, 3, SIZE])
def test_the_error_is_c_out_for_any_data_of_that_mean_and_covariance(rank: int) -> None:
    """E ‖L(x + σ n) − x‖² = tr (1 − A) C (1 − A)ᵀ + σ² tr A Aᵀ, by second moments alone."""
    mean, covariance = moments()
    gaussian = gaussian_of(mean, covariance, rank)
    for sigma in LEVELS:
        error = torch.eye(SIZE) - (linear := matrix_of(gaussian, sigma))
        squared = (error @ covariance @ error.mT).trace() + sigma**2 * (linear @ linear.mT).trace()
        expected = gaussian.c_out(torch.tensor([sigma], dtype=torch.float64)) ** 2
        assert torch.allclose(squared / SIZE, expected, rtol=1e-10)


def test_one_call_takes_a_noise_level_for_each_sample() -> None:
    gaussian = gaussian_of(*moments(), rank=3)
    noisy, sigmas = (
        torch.randn(3, *SHAPE, dtype=torch.float64, generator=generator(0, "noisy")),
        torch.tensor(LEVELS[:3]),
    )
    together = gaussian.denoise(noisy, sigmas)
    alone = [gaussian.denoise(one[None], float(sigma)) for one, sigma in zip(noisy, sigmas, strict=True)]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-12)
    assert gaussian.c_out(sigmas.view(-1, 1, 1, 1)).shape == (3, 1, 1, 1)


def test_before_it_is_fitted_it_is_the_skip_of_edm() -> None:
    noisy, sigma = torch.randn(2, *SHAPE, generator=generator(0, "noisy")), torch.tensor([0.1, 7.0])
    gaussian = LatentGaussian(SHAPE, 5)
    assert torch.allclose(gaussian.denoise(noisy, sigma), noisy / (1 + sigma.view(-1, 1, 1, 1) ** 2))
    assert torch.allclose(gaussian.c_out(sigma), sigma / (1 + sigma**2).sqrt())


def test_samples_have_its_covariance() -> None:
    mean, covariance = moments()
    gaussian = gaussian_of(mean, covariance, SIZE)
    root = (gaussian.sample(torch.eye(SIZE, dtype=torch.float64).view(-1, *SHAPE)) - gaussian.mean).flatten(1)
    assert torch.allclose(root.mT @ root, covariance, rtol=0, atol=1e-10)


def test_latents_of_another_size_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"latents of 2 x 4 x 4 .* the Gaussian of latents of 2 x 3 x 2"):
        LatentGaussian(SHAPE, 1).denoise(torch.zeros(1, 2, 4, 4), 1.0)


def test_autocast_does_not_lower_the_precision_of_the_skip() -> None:
    gaussian, noisy = gaussian_of(*moments(), rank=5).float(), torch.randn(4, *SHAPE, generator=generator(0, "noisy"))
    with torch.autocast("cpu", torch.bfloat16):
        lowered = gaussian.denoise(noisy, 0.3)
    assert torch.equal(lowered, gaussian.denoise(noisy, 0.3))


def test_cross_validated_eigenvalues_denoise_unseen_latents_better_than_the_sample_covariance() -> None:
    """With hardly more latents than dimensions, where the sample covariance overfits; most of all at small σ."""
    train, unseen = latents(200), latents(2000, seed=1)
    fitted = fit_gaussian(train)
    centered = (train - train.mean(0)).flatten(1).double()
    values, vectors = torch.linalg.eigh(centered.mT @ centered / len(train))
    raw = LatentGaussian((4, 6, 6), 144)
    raw.mean.copy_(train.mean(0)), raw.basis.copy_(vectors.flip(1)), raw.eigenvalues.copy_(values.flip(0))
    for sigma in (0.1, 0.3, 1.0):
        noisy = unseen + sigma * torch.randn(unseen.shape, generator=generator(0, "noise"))
        errors = [(each.denoise(noisy, sigma) - unseen).square().mean() for each in (fitted, raw)]
        assert errors[0] < errors[1]
        predicted = fitted.c_out(torch.tensor([sigma])) ** 2
        assert abs(float(errors[0] / predicted) - 1) < 0.05


def test_a_fit_is_always_the_same_and_global_random_numbers_stay_as_they_are() -> None:
    before = torch.random.get_rng_state()
    first, again = (fit_gaussian(latents(60), rank=10).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


def test_mirror_images_count_and_stay_in_the_fold_of_theirs() -> None:
    """Told as further images they would predict each other, and small variances would come out too small."""
    train = latents(150)
    told, untold = fit_gaussian(train, mirrored=train, rank=100), fit_gaussian(torch.cat([train, train]), rank=100)
    assert torch.allclose(told.eigenvalues, fit_gaussian(train, rank=100).eigenvalues, rtol=1e-4)
    assert told.rest > 1.1 * untold.rest
    mirrored = fit_gaussian(train, mirrored=train.flip(-1), rank=1)
    assert torch.allclose(mirrored.mean, mirrored.mean.flip(-1), atol=1e-6)


def test_a_group_stays_in_one_fold_and_folds_are_of_one_size() -> None:
    groups = [index // 3 for index in range(60)]
    folds = folds_of(60, groups, 5)
    assert sorted(index for fold in folds for index in fold) == list(range(60)) and {len(each) for each in folds} == {
        12
    }
    assert all(len({index // 3 for index in fold}) == 4 for fold in folds)


def test_the_noise_of_the_posterior_is_part_of_the_variance() -> None:
    train, noise = latents(200), torch.tensor([0.1, 0.2, 0.3, 0.4])
    bare, noisy = fit_gaussian(train), fit_gaussian(train, noise_variance=noise)
    assert torch.isclose(noisy.eigenvalues.sum() - bare.eigenvalues.sum(), 36 * noise.sum(), rtol=1e-2)


def test_what_is_left_of_the_spectrum_has_its_mean_variance() -> None:
    train = latents(300)
    whole, part = fit_gaussian(train), fit_gaussian(train, rank=20)
    assert torch.allclose(whole.eigenvalues[:20], part.eigenvalues, rtol=1e-5)
    assert torch.isclose(part.rest, whole.eigenvalues[20:].mean(), rtol=1e-5)


def test_values_become_non_increasing_by_pooling() -> None:
    assert non_increasing([5, 1, 3, 2], [1, 1, 1, 4]) == [5, 2, 2, 2]
    assert non_increasing([3, 2, 1], [1, 1, 1]) == [3, 2, 1]


def test_few_of_many_eigenvectors_span_the_space_of_the_largest_eigenvalues() -> None:
    basis = torch.linalg.qr(torch.randn(1100, 1100, generator=generator(0, "basis"), dtype=torch.float64)).Q
    found = eigenvectors(basis * torch.logspace(3, -3, 1100) @ basis.mT, 20)
    assert torch.allclose((found.mT @ basis[:, :20]).abs(), torch.eye(20, dtype=torch.float64), atol=1e-3)


def test_too_large_and_too_few_latents_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"latents of 65,536 numbers takes 256\.0 GiB"):
        fit_gaussian(torch.zeros(2, 4, 128, 128))
    with pytest.raises(ConfigError, match="cannot be cross-validated"):
        fit_gaussian(latents(4), groups=["one"] * 4)
