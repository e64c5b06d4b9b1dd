"""Probability tables in integers: cumulative distributions on a fine grid, and from them the table of any step.

A decoder must find the very numbers that the encoder had, or everything after the first difference is noise. exp and
erf of different machines differ in their last bit, so that no table may be computed from them where a file is decoded.
Here a distribution is computed once, when it is fitted, and stored as its cumulative function in integers, at
`POSITIONS` positions per standard deviation of the latents. The table of a step is made of differences of these
integers, by integer arithmetic alone: one stored distribution serves every step, and the same one everywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ldm.entropy.categorical import TOTAL, categorical
from ldm.errors import CheckpointError

POSITIONS = 256  # per standard deviation of the latents
MASS = 2**30  # of a stored distribution, with its tails
SUREST = TOTAL - 2**16  # no symbol is surer than this, so that each costs bits, and a header cannot claim any number
LEAST_BITS = float(np.log2(TOTAL / SUREST))  # that a symbol costs
LARGEST_STEP = 8 * POSITIONS
OFFSETS = 16  # a mean is rounded to so many fractions of a step
MOST_CACHED = 2**14  # tables


@dataclass(frozen=True)
class WeightTable:
    """The weight of each symbol -last..last and of the escape after them; positive integers that sum to `TOTAL`."""

    weights: np.ndarray
    find_centroids: Callable[[], np.ndarray]

    @property
    def last(self) -> int:
        """The largest symbol."""
        return len(self.weights) // 2 - 1

    @cached_property
    def centroids(self) -> np.ndarray:
        """Of each symbol the mean of what falls into its cell, less the cell's center, in positions."""
        return self.find_centroids()

    @cached_property
    def bits(self) -> np.ndarray:
        """What each symbol costs."""
        found: np.ndarray = -np.log2(self.weights / TOTAL)
        return found

    @cached_property
    def model(self) -> Any:
        """The same for constriction."""
        return categorical(self.weights)


@dataclass(frozen=True)
class CumulativeTables:
    """Cumulative distributions around 0, one after the other in `values`: each at the positions -reach..reach.

    They rise from the mass of the lower tail to `MASS` less that of the upper one.
    """

    reaches: np.ndarray  # int64, of each distribution
    values: np.ndarray  # int64
    _cached: dict[tuple[int, int, int], WeightTable] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        """Raise CheckpointError unless every table can be made of these."""
        sizes = 2 * self.reaches + 1
        whole = self.reaches.ndim == self.values.ndim == 1 and len(self.reaches) > 0 and (self.reaches > 0).all()
        if not whole or (self.reaches > 2 * LARGEST_STEP).any() or sizes.sum() != len(self.values):
            raise CheckpointError("the distributions of the entropy model are not of the size that they claim")
        inside = np.ones(len(self.values) - 1, dtype=bool)
        inside[np.cumsum(sizes)[:-1] - 1] = False
        if self.values.min() < 0 or self.values.max() > MASS or (np.diff(self.values)[inside] < 0).any():
            raise CheckpointError("the distributions of the entropy model do not rise from 0 to 1")

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each distribution begins in `values`."""
        return np.concatenate([[0], np.cumsum(2 * self.reaches + 1)[:-1]])

    @cached_property
    def integrals(self) -> np.ndarray:
        """Twice the integral of `values` up to each position; differences count within one distribution alone."""
        return np.concatenate([[0], np.cumsum(self.values[1:] + self.values[:-1])])

    def at(self, number: int, offset: int, step: int) -> WeightTable:
        """The table of a distribution whose mean lies `offset` positions above the center of symbol 0."""
        key = (number, offset, step)
        if key not in self._cached:
            if len(self._cached) >= MOST_CACHED:
                self._cached.clear()
            self._cached[key] = self._table(*key)
        return self._cached[key]

    def _table(self, number: int, offset: int, step: int) -> WeightTable:
        reach, start = int(self.reaches[number]), int(self.starts[number])
        last = reach // step + 1
        symbols = np.arange(-last, last + 2)
        edges = (2 * symbols - 1) * step // 2 - offset  # lower ends of the cells, as seen from the mean
        inside = np.clip(edges, -reach, reach)
        masses = np.diff(self.values[start + reach + inside])

        def centroids() -> np.ndarray:
            # Integration by parts: the integral of x dF over a cell is [x F] less that of F.
            values, integrals = self.values[start + reach + inside], self.integrals[start + reach + inside]
            means = (np.diff(2 * inside * values) - np.diff(integrals)) / np.maximum(2 * masses, 1)
            centers = symbols[:-1] * step - offset
            # A cell that lies beyond the stored distribution, or hardly touches it, keeps its center.
            whole = (masses > MASS >> 24) & (edges[:-1] >= -reach) & (edges[1:] <= reach)
            return np.where(whole, means - centers, 0.0)

        return WeightTable(weights_of(np.append(masses, MASS - masses.sum())), centroids)


def steps_of(step: float, ratios: Sequence[float]) -> list[int]:
    """The step of each channel in positions, where it would be `step` at a ratio of 1."""
    return [min(max(round(step * ratio), 1), LARGEST_STEP) for ratio in ratios]


def weights_of(masses: np.ndarray) -> np.ndarray:
    """Positive integers that sum to `TOTAL`, in the proportion of nonnegative ones that sum to `MASS`.

    One each, the rest in proportion and rounded down; what is left over goes to the largest, and of that what is above
    `SUREST` to its two neighbors.
    """
    count = len(masses)
    weights: np.ndarray = 1 + masses.astype(np.int64) * (TOTAL - count) // MASS
    largest = int(weights.argmax())
    weights[largest] += TOTAL - weights.sum()
    excess = max(int(weights[largest]) - SUREST, 0)
    weights[largest] -= excess
    weights[largest - 1] += excess // 2
    weights[(largest + 1) % count] += excess - excess // 2
    return weights
