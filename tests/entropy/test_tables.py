"""Tables of weights are integers that sum to the coder's total, at every step and offset, and follow what is stored."""

import numpy as np
import pytest

from ldm.entropy.categorical import TOTAL
from ldm.entropy.distributions import joined, smoothed
from ldm.entropy.tables import LARGEST_STEP, MASS, POSITIONS, SUREST, CumulativeTables, weights_of
from ldm.errors import CheckpointError


@pytest.fixture(scope="module")
def tables() -> CumulativeTables:
    rng = np.random.default_rng(0)
    scales = (10.0, 256.0, 600.0)
    return joined([smoothed(np.rint(rng.normal(0, scale, 4000)).astype(np.int64), scale) for scale in scales])


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("step", [1, 2, 7, 64, 333, 1024, LARGEST_STEP])
def test_every_table_is_positive_integers_that_sum_to_the_total(
    tables: CumulativeTables, number: int, step: int
) -> None:
    for offset in {-(step // 2), 0, step // 3}:
        table = tables.at(number, offset, step)
        assert table.weights.dtype == np.int64 and table.weights.sum() == TOTAL
        assert table.weights.min() >= 1 and table.weights.max() <= SUREST
        assert len(table.weights) == 2 * table.last + 2 and len(table.centroids) == 2 * table.last + 1


def test_a_table_has_the_mass_of_each_cell(tables: CumulativeTables) -> None:
    reach, start = int(tables.reaches[1]), int(tables.starts[1])
    stored = tables.values[start : start + 2 * reach + 1] / MASS
    table = tables.at(1, 10, 64)
    for symbol in (-3, 0, 1, 5):
        lower, upper = (reach + 64 * symbol + side - 10 for side in (-32, 32))
        assert abs(table.weights[symbol + table.last] / TOTAL - (stored[upper] - stored[lower])) < 1e-5


def test_a_centroid_is_the_mean_of_its_cell(tables: CumulativeTables) -> None:
    samples = np.random.default_rng(1).normal(0, 256, 400_000)
    table = tables.at(1, 0, 256)
    for symbol in (-1, 0, 1):
        cell = samples[np.abs(samples - 256 * symbol) < 128]
        assert abs(256 * symbol + table.centroids[symbol + table.last] - cell.mean()) < 4
    assert table.centroids[table.last + 1] < -10  # towards the middle


def test_what_is_left_over_goes_to_the_largest_and_none_is_surer_than_allowed() -> None:
    weights = weights_of(np.array([0, MASS // 3, MASS - MASS // 3, 0]))
    assert weights.sum() == TOTAL and weights[0] == weights[3] == 1
    sure = weights_of(np.array([0, MASS, 0, 0]))
    assert sure[1] == SUREST and sure.sum() == TOTAL and abs(sure[0] - sure[2]) <= 1


def test_smoothed_rises_to_one_whatever_the_samples_are() -> None:
    for samples in (np.zeros(0), np.zeros(1000), np.array([10**9, -(10**9)]), np.full(500, 77)):
        values = smoothed(samples.astype(np.int64), float(POSITIONS))
        assert values[0] >= 0 and values[-1] <= MASS and (np.diff(values) >= 0).all()
    inside = smoothed(np.zeros(1000, dtype=np.int64), float(POSITIONS))
    assert inside[len(inside) // 2 + 20] - inside[len(inside) // 2 - 20] > 0.9 * MASS


def test_the_kernel_is_as_narrow_as_the_samples_are_many() -> None:
    rng = np.random.default_rng(0)
    true = np.diff(smoothed(np.zeros(0, dtype=np.int64), 256.0)) / MASS
    places = rng.choice(len(true), 100_000, p=true / true.sum()) - len(true) // 2
    fits = [np.diff(smoothed(places[:count], 256.0)) / MASS for count in (300, 100_000)]
    excess = [float(true @ (np.log(np.maximum(true, 1e-12)) - np.log(np.maximum(fit, 1e-12)))) for fit in fits]
    assert 0 <= excess[1] < 0.002 < excess[0] < 0.1


@pytest.mark.parametrize(
    ("reaches", "values"),
    [
        ([1], [0, 5]),
        ([1], [0, MASS + 1, MASS + 1]),
        ([1], [5, 4, 6]),
        ([-1, 1], [0, 1, 2, 3]),
        ([], []),
        ([10**12], [0]),
    ],
)
def test_damaged_distributions_are_refused(reaches: list[int], values: list[int]) -> None:
    with pytest.raises(CheckpointError, match="entropy model"):
        CumulativeTables(np.array(reaches, dtype=np.int64), np.array(values, dtype=np.int64)).check()
