"""Synthetic data with a known distribution, and scikit-learn's digits."""

import torch
from torch import Tensor

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
