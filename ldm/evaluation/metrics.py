"""Image metrics: PSNR, SSIM, MS-SSIM, Fréchet and kernel distance, and the PCA and Wiener baselines."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.shapes import Images, Scalars

SSIM_SIDE = 11  # of the window, in pixels
MS_SSIM_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, from the finest on
MS_SSIM_SIDE = 161  # the smallest whose fifth scale still holds a window
KID_SUBSET, KID_SUBSETS = 1000, 100
ROWS = 1024  # whose kernels with all others are held at once


def psnr(images: Images, reconstruction: Images) -> Scalars:
    """Peak signal-to-noise ratio of each image in dB, the reconstruction clipped to [-1, 1]; at most 100 dB."""
    error = ((images - reconstruction.clamp(-1, 1)) / 2).flatten(1).double().square().mean(1)
    return (-10 * torch.log10(error)).clamp(max=100.0)


def ssim(images: Images, reconstruction: Images) -> Scalars:
    """Structural similarity of each image, at most 1 (Wang et al. 2004): the mean over channels and windows.

    A window is 11 x 11 pixels with Gaussian weights, σ = 1.5, and lies wholly inside the image: nothing is padded, so
    that no side may be shorter than `SSIM_SIDE`. In float64: the variance of a flat window is a difference of large
    numbers.
    """
    return ssim_map(images, reconstruction).mean((2, 3)).mean(1)


def ssim_map(images: Images, reconstruction: Images) -> Tensor:
    """The same for each channel and window, batch x channels x H - 10 x W - 10."""
    luminance, contrast = _similarity(*_from_black(images, reconstruction))
    return luminance * contrast


def ms_ssim(images: Images, reconstruction: Images) -> Scalars:
    """Multi-scale structural similarity of each image (Wang, Simoncelli and Bovik 2003), averaged over channels.

    The product over five scales, each half as large as the one before, of the contrast and structure terms of SSIM,
    and at the last scale of SSIM itself, to the powers of the paper. Negative factors count as 0, and an odd side is
    extended by its last pixel before it is halved. No side may be shorter than `MS_SSIM_SIDE`.
    """
    real, shown = _from_black(images, reconstruction)
    product = real.new_ones(real.shape[:2])
    for scale, power in enumerate(MS_SSIM_POWERS):
        if scale:
            real, shown = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (real, shown))
        luminance, contrast = _similarity(real, shown)
        is_last = scale == len(MS_SSIM_POWERS) - 1
        product = product * (luminance * contrast if is_last else contrast).mean((2, 3)).clamp_min(0) ** power
    return product.mean(1)


def _from_black(images: Images, reconstruction: Images) -> tuple[Tensor, Tensor]:
    """Both in float64 from black = 0 to white = 1, for which the luminance term of SSIM is made."""
    real, shown = ((x.clamp(-1, 1).double() + 1) / 2 for x in (images, reconstruction))
    return real, shown


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term of SSIM, and that of contrast and structure, for each image, channel and window."""
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = _window_means(x), _window_means(y)
    variances = _window_means(x * x + y * y) - mean_x**2 - mean_y**2
    contrast = (2 * (_window_means(x * y) - mean_x * mean_y) + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, contrast


def _window_means(x: Tensor) -> Tensor:
    """Means weighted by the Gaussian window, at every place where it fits; by sums, as double convolutions are slow."""
    radius = SSIM_SIDE // 2
    weights = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * 1.5**2))
    for dimension in (2, 3):
        places = x.shape[dimension] - 2 * radius
        terms = ((weights / weights.sum()).tolist(), range(SSIM_SIDE))
        x = sum(weight * x.narrow(dimension, start, places) for weight, start in zip(*terms, strict=True))
    return x


def frechet_distance(real: Tensor, other: Tensor) -> float:
    """‖μ₁ - μ₂‖² + tr(S₁ + S₂ - 2 (S₁^½ S₂ S₁^½)^½) between Gaussians fitted to two sets of features, n x d and m x d.

    The squared distance of Fréchet (1957) that FID uses (Heusel et al. 2017), in float64.
    """
    return FeatureGaussian.of(real).frechet_distance(FeatureGaussian.of(other))


@dataclass(frozen=True, eq=False)
class FeatureGaussian:
    """The Gaussian fitted to a set of features: its mean μ, and F with Fᵀ F = S, the unbiased covariance."""

    mean: Tensor
    factor: Tensor  # no more rows than columns, unless the features were fewer

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """The one of the rows of a matrix, in float64."""
        mean = rows.double().mean(0)
        factor = (rows.double() - mean) / (len(rows) - 1) ** 0.5
        return cls(mean, torch.linalg.qr(factor, mode="r").R if len(rows) > rows.shape[1] else factor)

    def frechet_distance(self, other: Self) -> float:
        """`frechet_distance` of the two sets of features.

        The last trace is the sum of the singular values of F₁ F₂ᵀ: no root of a matrix is taken, so that nearly
        singular covariances, and fewer rows than dimensions, do no harm to the computation. (They do make the estimate
        too large.)
        """
        traces = self.factor.square().sum() + other.factor.square().sum()
        overlap = torch.linalg.svdvals(self.factor @ other.factor.T).sum()
        return max(((self.mean - other.mean).square().sum() + traces - 2 * overlap).item(), 0.0)


def kernel_distance(real: Tensor, other: Tensor, *, subset_size: int = KID_SUBSET, subsets: int = KID_SUBSETS) -> float:
    """Squared maximum mean discrepancy of two sets of features, n x d and m x d, as in KID (Binkowski et al. 2018).

    The unbiased estimate with the kernel (xᵀy / d + 1)³, in float64: about 0, and possibly below, where both sets have
    the same distribution. Of more than `subset_size` rows it is the mean over random subsets, those of torch-fidelity.
    """
    chosen = kernel_subsets(len(real), len(other), subset_size=subset_size, subsets=subsets)
    within = [mean_kernel(*each) for each in zip((real, other), chosen, strict=True)]
    return (within[0] + within[1] - 2 * mean_kernel_between(real, other, *chosen)).mean().item()


def kernel_subsets(
    real: int, other: int, *, subset_size: int = KID_SUBSET, subsets: int = KID_SUBSETS
) -> tuple[Tensor, Tensor]:
    """Which rows of two sets of so many are in which subset: rows x subsets of 0 and 1; all, where they are few."""
    random = np.random.RandomState(2020)
    chosen = [
        torch.full((count, subsets if max(real, other) > subset_size else 1), float(count <= subset_size)).double()
        for count in (real, other)
    ]
    for subset in range(chosen[0].shape[1]):
        for rows in chosen:
            if len(rows) > subset_size:
                rows[random.choice(len(rows), subset_size, replace=False), subset] = 1
    return chosen[0], chosen[1]


def mean_kernel(rows: Tensor, chosen: Tensor) -> Tensor:
    """The mean kernel of two different rows of a subset, for each subset."""
    own = chosen.T @ (rows.double().square().sum(1) / rows.shape[1] + 1) ** 3
    counts = chosen.sum(0)
    return (_kernel_sums(rows, rows, chosen, chosen) - own) / (counts * (counts - 1))


def mean_kernel_between(real: Tensor, other: Tensor, in_real: Tensor, in_other: Tensor) -> Tensor:
    """The mean kernel of a row of `real` and one of `other`, for each subset."""
    return _kernel_sums(real, other, in_real, in_other) / (in_real.sum(0) * in_other.sum(0))


def _kernel_sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Σ (xᵀy / d + 1)³ over the pairs of each subset: every pair of rows meets once, however many subsets it is in."""
    total, y = in_x.new_zeros(in_x.shape[1]), y.double()
    for rows, chosen in zip(x.double().split(ROWS), in_x.split(ROWS), strict=True):
        total += (chosen * ((rows @ y.T / y.shape[1] + 1) ** 3 @ in_y)).sum(0)
    return total


def principal_components(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean of the rows and their `count` leading principal directions (columns), in float64."""
    mean = rows.mean(0, dtype=torch.float64)
    centered = rows.double() - mean
    if len(rows) < rows.shape[1]:  # the small Gram matrix has the same nonzero spectrum
        values, vectors = torch.linalg.eigh(centered @ centered.T)
        directions = centered.T @ (vectors[:, -count:] / values[-count:].clamp_min(1e-12).sqrt())
    else:
        directions = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -count:]
    return mean, directions


def pca_psnr(train: Images, held_out: Images, numbers: int) -> float | None:
    """Mean PSNR in dB of held-out images through global PCA with `numbers` components; or None: too few images.

    No linear autoencoder with as many numbers per image does better on the training set (Baldi and Hornik 1989).
    """
    if numbers >= len(train):
        return None
    mean, directions = principal_components(train.flatten(1), numbers)
    rows = held_out.flatten(1).double() - mean
    reconstruction = rows @ directions @ directions.T + mean
    return psnr(held_out, reconstruction.view_as(held_out).to(held_out)).mean().item()


def patch_pca_psnr(train: Images, held_out: Images, patch: int, numbers: int) -> float:
    """Mean PSNR in dB of held-out images when each patch x patch square keeps `numbers` principal components."""
    mean, directions = principal_components(patches(train, patch), numbers)
    rows = patches(held_out, patch).double() - mean
    reconstruction = (rows @ directions @ directions.T + mean).to(held_out)
    return psnr(patches_of(held_out, patch), reconstruction.view(len(held_out), -1)).mean().item()


def linear_restoration_psnr(
    clean: Images,
    corrupted: list[Images],
    held_out: Images,
    held_out_corrupted: Images,
    keep_mask: Tensor | None = None,
    *,
    most: int = 1024,
) -> float:
    """Mean PSNR in dB of held-out images that the best linear denoiser restores (Wiener 1949).

    That is the least-squares map from corrupted images, several versions of each, to clean ones, fitted in float64. It
    works on whole images of up to `most` values, and on squares of larger ones, of which 20,000 are enough. The
    values of held-out images where `keep_mask` is true are taken from them.
    """
    side = min(clean.shape[-2:])
    if clean[0].numel() > most or clean.shape[-1] != clean.shape[-2]:
        fits = [n for n in range(1, side + 1) if not any(s % n for s in clean.shape[-2:])]
        side = max((n for n in fits if clean.shape[1] * n * n <= most), default=1)
    step = -(-len(patches(clean[:1], side)) * len(clean) // 20_000)
    clean, corrupted = clean[::step], [version[::step] for version in corrupted]
    targets = patches(clean, side)
    mean = targets.mean(0, dtype=torch.float64)
    seen = torch.stack([patches(version, side).mean(0, dtype=torch.float64) for version in corrupted]).mean(0)
    moment, cross = mean.new_zeros(2, len(mean), len(mean))
    for version in corrupted:
        rows = patches(version, side).double() - seen
        moment, cross = moment + rows.T @ rows, cross + rows.T @ (targets.double() - mean)
    ridge = 1e-6 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    weights = torch.linalg.solve(moment + ridge, cross)
    restored = ((patches(held_out_corrupted, side).double() - seen) @ weights + mean).to(held_out)
    if keep_mask is not None:
        restored = torch.where(patches(keep_mask.to(held_out), side) > 0.5, patches(held_out, side), restored)
    return psnr(patches_of(held_out, side), restored.view(len(held_out), -1)).mean().item()


def patches(images: Images, patch: int) -> Tensor:
    """Every square of every image as a row: (batch * squares) x (channels * patch * patch)."""
    squares = images.unfold(2, patch, patch).unfold(3, patch, patch)  # b c h w p p
    return squares.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * patch * patch)


def patches_of(images: Images, patch: int) -> Tensor:
    """The same values, one row per image."""
    return patches(images, patch).view(len(images), -1)
