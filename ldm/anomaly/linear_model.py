"""Principal components of normal images, or of their features: the best linear reconstruction, in closed form."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ldm.errors import DataError
from ldm.evaluation.metrics import principal_components

MOST_VALUES = 10**8  # of the vectors that are fitted to
MOST_COMPONENTS = 512  # where a share of the variance is asked for


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A mean vector and orthonormal directions: vector ≈ mean + directions · coordinates."""

    mean: Tensor  # d
    directions: Tensor  # d x k, that of the largest variance first

    @classmethod
    def fit(cls, vectors: Tensor, *, components: int | None = None, variance: float = 1.0) -> Self:
        """The components of the rows: so many, or, for None, those that hold this share of their variance."""
        most = min(len(vectors) - 1, vectors.shape[1])
        if components is not None and components > most:
            raise DataError(
                f"pca:{components} needs more than {components} normal images to fit to, and as many numbers per image:"
                f" {len(vectors)} images of {vectors.shape[1]} numbers allow {max(most, 0)}"
            )
        if most < 1:
            raise DataError(f"principal components need at least 2 normal images to fit to, not {len(vectors)}")
        mean, directions = principal_components(vectors, components or min(most, MOST_COMPONENTS))
        directions = directions.flip(1)
        if components is None:
            centered = vectors.double() - mean
            shares = (centered @ directions).square().sum(0).cumsum(0) / centered.square().sum().clamp_min(1e-300)
            directions = directions[:, : int((shares < variance).sum()) + 1]
        return cls(mean.float(), directions.float().contiguous())

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Batch x k."""
        return (vectors - self.mean) @ self.directions.to(vectors.dtype)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """The vectors of these coordinates."""
        return self.mean + coordinates @ self.directions.to(coordinates.dtype).mT

    def to(self, device: torch.device | str) -> Self:
        """On another device."""
        return type(self)(self.mean.to(device), self.directions.to(device))


def evenly_many(count: int, numbers: int) -> int:
    """Every how manieth of `count` vectors of so many numbers is fitted to, lest they fill the memory."""
    return max(-(-count * numbers // MOST_VALUES), 1)
