"""Metrics of two sets of features, held against outside code and against the definitions, pair by pair."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.evaluation.fidelity import ReferenceFeatures, neighbor_distances
from ldm.evaluation.metrics import frechet_distance, kernel_distance


def features(count: int, seed: int, *, spread: float = 1.0, dimensions: int = 12) -> Tensor:
    """Rows far from the origin, as features are."""
    rng = torch.Generator().manual_seed(seed)
    return 5 + spread * torch.randn(count, dimensions, generator=rng)


def balls(rows: Tensor, k: int) -> list[tuple[list[float], float]]:
    """Centers and radii, by sorting every distance."""
    points = rows.double().tolist()
    return [
        (point, sorted(math.dist(point, other) for place, other in enumerate(points) if place != own)[k - 1])
        for own, point in enumerate(points)
    ]


def inside(rows: Tensor, found: list[tuple[list[float], float]]) -> np.ndarray:
    """Rows x balls: whether it lies in it."""
    return np.array([[math.dist(row, center) <= radius for center, radius in found] for row in rows.double().tolist()])


@pytest.mark.parametrize("spread", [0.8, 1.0, 1.2])
def test_precision_recall_density_and_coverage_are_those_of_brute_force(spread: float) -> None:
    real, other = features(60, 0), features(40, 1, spread=spread)
    found = ReferenceFeatures(real).metrics(other)
    in_real, in_other = inside(other, balls(real, 3)), inside(real, balls(other, 3))
    assert found["precision"] == pytest.approx(in_real.any(1).mean(), abs=1e-12)
    assert found["recall"] == pytest.approx(in_other.any(1).mean(), abs=1e-12)
    in_real = inside(other, balls(real, 5))
    assert found["density"] == pytest.approx(in_real.sum() / (5 * 40), abs=1e-12)
    assert found["coverage"] == pytest.approx(in_real.any(0).mean(), abs=1e-12)
    assert 0 < found["recall"] < 1 or 0 < found["precision"] < 1


def test_distances_by_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, others = features(70, 2), features(50, 3)
    whole = ReferenceFeatures(rows).metrics(others)
    monkeypatch.setattr("ldm.evaluation.fidelity.ROWS", 16)
    monkeypatch.setattr("ldm.evaluation.metrics.ROWS", 16)
    assert ReferenceFeatures(rows).metrics(others) == pytest.approx(whole, rel=1e-9)


def test_a_copy_has_its_twin_as_nearest_neighbor() -> None:
    rows = features(20, 4)
    assert neighbor_distances(torch.cat([rows, rows[:1]]), 1)[[0, -1]].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_fewer_images_than_neighbors_have_balls_to_the_farthest() -> None:
    found = ReferenceFeatures(features(3, 5)).metrics(features(2, 6))
    assert all(math.isfinite(value) for value in found.values())


def test_other_images_of_the_same_distribution_score_about_as_well_as_possible() -> None:
    found = ReferenceFeatures(features(600, 7)).metrics(features(600, 8))
    assert found["precision"] > 0.7 and found["recall"] > 0.7 and 0.8 < found["density"] < 1.2
    assert found["coverage"] > 0.9


def test_samples_of_one_image_are_precise_and_recall_nothing() -> None:
    """A collapsed model."""
    real = features(100, 9)
    found = ReferenceFeatures(real).metrics(real[:1] + 0.01 * features(100, 10, dimensions=12))
    assert found["precision"] == 1 and found["recall"] < 0.05 and found["coverage"] < 0.5


@pytest.mark.parametrize("counts", [(50, 50), (1100, 1200), (1100, 60), (60, 1100)])
def test_the_distances_are_those_of_two_sets_alone_whichever_came_before(counts: tuple[int, int]) -> None:
    real, other = (features(count, number, dimensions=6) for number, count in enumerate(counts))
    reference = ReferenceFeatures(real)
    reference.metrics(features(70, 11, dimensions=6))
    found = reference.metrics(other)
    assert found["frechet"] == frechet_distance(real, other)
    assert found["kernel"] == pytest.approx(kernel_distance(real, other), rel=1e-9)


def test_the_distances_are_those_of_torch_fidelity_with_the_same_features() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, other = features(300, 12), features(300, 13, spread=1.1)
    found = ReferenceFeatures(real).metrics(other)
    statistics = [fid_features_to_statistics(each.double()) for each in (real, other)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    kid = kid_features_to_metric(
        real.double(), other.double(), kid_subset_size=300, kid_subsets=1, rng_seed=2020, verbose=False
    )
    assert found["frechet"] == pytest.approx(fid, rel=1e-4)
    assert found["kernel"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4)


def test_precision_and_recall_are_those_of_torch_fidelity_with_the_same_features() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, other = features(200, 14), features(150, 15, spread=1.2)
    found = ReferenceFeatures(real).metrics(other)
    theirs = prc_features_to_metric(other.double(), real.double(), prc_neighborhood=3, verbose=False)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-6)
