"""Metrics of generated images in a space of features: how faithful they are, how much of the real images they cover.

Precision and recall (Kynkäänniemi et al. 2019) ask whether an image lies in the other set's manifold, the union of the
balls around its features that reach to their k-th nearest neighbors. Density and coverage (Naeem et al. 2020) use the
balls of the real images alone, so that one odd sample with a large ball counts for little. Beside them are the Fréchet
and the kernel distance of `metrics`.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ldm.evaluation.metrics import KID_SUBSET, FeatureGaussian, kernel_subsets, mean_kernel, mean_kernel_between

MANIFOLD_NEIGHBORS = 3  # k of precision and recall
COVERAGE_NEIGHBORS = 5  # k of density and coverage
ROWS = 1024  # whose distances to all others are held at once


class ReferenceFeatures:
    """The features of real images, n x d, that other sets are compared with; what is of them alone is computed once."""

    def __init__(self, features: Tensor):
        self.features = features
        self._mean_kernels: dict[int, Tensor] = {}  # by what the subsets of these rows depend on

    @cached_property
    def gaussian(self) -> FeatureGaussian:
        """The Gaussian fitted to them."""
        return FeatureGaussian.of(self.features)

    @cached_property
    def radii(self) -> dict[int, Tensor]:
        """The distance of each to its k-th nearest neighbor, by k."""
        return {k: neighbor_distances(self.features, k) for k in (MANIFOLD_NEIGHBORS, COVERAGE_NEIGHBORS)}

    def metrics(self, other: Tensor) -> dict[str, float]:
        """The six metrics of another set of features, m x d."""
        precision, recall = self.precision_recall(other)
        density, coverage = self.density_coverage(other)
        return {
            "frechet": self.gaussian.frechet_distance(FeatureGaussian.of(other)),
            "kernel": self.kernel_distance(other),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
        }

    def precision_recall(self, other: Tensor) -> tuple[float, float]:
        """Share of the other images in the manifold of these, and of these in the manifold of the others."""
        precise = [held.any(1) for held in in_balls(other, self.features, self.radii[MANIFOLD_NEIGHBORS])]
        recalled = [
            held.any(1) for held in in_balls(self.features, other, neighbor_distances(other, MANIFOLD_NEIGHBORS))
        ]
        return torch.cat(precise).double().mean().item(), torch.cat(recalled).double().mean().item()

    def density_coverage(self, other: Tensor) -> tuple[float, float]:
        """How many balls of these images one of the others lies in, divided by k; share of the balls that hold any.

        A density above 1 means that the others lie where these are densest.
        """
        inside, reached = 0, torch.zeros(len(self.features), dtype=torch.bool)
        for held in in_balls(other, self.features, self.radii[COVERAGE_NEIGHBORS]):
            inside += int(held.sum())
            reached |= held.any(0)
        neighbors = min(COVERAGE_NEIGHBORS, len(self.features) - 1)
        return inside / (neighbors * len(other)), reached.double().mean().item()

    def kernel_distance(self, other: Tensor) -> float:
        """`metrics.kernel_distance`."""
        chosen = kernel_subsets(len(self.features), len(other))
        drawn_from = len(other) if len(other) > KID_SUBSET else 0
        if drawn_from not in self._mean_kernels:
            self._mean_kernels[drawn_from] = mean_kernel(self.features, chosen[0])
        within = self._mean_kernels[drawn_from] + mean_kernel(other, chosen[1])
        return (within - 2 * mean_kernel_between(self.features, other, *chosen)).mean().item()


def neighbor_distances(rows: Tensor, neighbors: int) -> Tensor:
    """The distance of each row to its k-th nearest other one, or to the farthest where there are fewer."""
    place = min(neighbors, len(rows) - 1)  # the nearest of all is the row itself
    return torch.cat([part.kthvalue(place + 1, dim=1).values for part in distances(rows, rows)])


def in_balls(rows: Tensor, centers: Tensor, radii: Tensor) -> Iterator[Tensor]:
    """Which of the rows, some at a time, lie in which of the balls."""
    for part in distances(rows, centers):
        yield part <= radii


def distances(rows: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Euclidean distances of some rows at a time to all others, in float64."""
    center = others.double().mean(0)  # near the origin the products of rows lose nothing
    others = others.double() - center
    for part in rows.split(ROWS):
        yield torch.cdist(part.double() - center, others)
