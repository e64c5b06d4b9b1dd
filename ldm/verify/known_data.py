"""Synthetic data with a known distribution, and scikit-learn's digits."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ldm.randomness import generator
from ldm.shapes import Images, Labels


def gaussian(count: int, variances: Tensor, purpose: str, *, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    """`count` vectors, and the rotation whose columns are their principal axes, with these variances.

    Mean and covariance of the vectors are exact: what is true of the law is true of these very numbers.
    """
    rng, size = generator(0, purpose), len(variances)
    axes = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64)).Q
    white = torch.randn(count, size, generator=rng, dtype=torch.float64)
    white = white - white.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance(white)).T, white, upper=True, left=False)
    return mean + white * variances.sqrt() @ axes.T, axes


def covariance(vectors: Tensor) -> Tensor:
    """The covariance matrix of the rows, over their number."""
    centered = vectors - vectors.mean(0)
    return centered.T @ centered / len(vectors)


def digits() -> tuple[Images, Labels]:
    """The 1797 scanned digits of 8 x 8 pixels that scikit-learn brings along, or ImportError."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.as_tensor(found.images).to(torch.get_default_dtype()) / 8 - 1
    return images[:, None], torch.as_tensor(found.target)


def smooth_images(count: int, *shape: int) -> Images:
    """Images whose neighboring pixels are alike, as those of photographs are: noise, blurred twice over; float64."""
    rng, (channels, height, width) = generator(0, "smooth images"), shape
    noise = torch.randn(count, channels, height + 8, width + 8, generator=rng, dtype=torch.float64)
    blurred = avg_pool2d(avg_pool2d(noise, 5, 1), 5, 1)
    mixed = blurred + blurred.mean(1, keepdim=True)  # channels go together
    return (0.6 * mixed / mixed.std() + 0.1).clamp(-1, 1)
