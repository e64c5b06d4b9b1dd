"""Metrics of anomaly detection against scikit-learn, scikit-image, and the definitions taken word by word."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.anomaly.metrics import aupro, auroc, average_precision, connected_regions, pixel_auroc
from ldm.errors import DataError
from ldm.randomness import generator


def scores_and_labels(levels: int, count: int = 500) -> tuple[Tensor, Tensor]:
    """Scores of so many different values, which anomalies have a little higher."""
    rng = generator(levels, "test metrics")
    labels = torch.rand(count, generator=rng) < 0.3
    scores = torch.randn(count, dtype=torch.float64, generator=rng) + labels
    return (scores * levels / 6).round() if levels < count else scores, labels


def maps_and_masks() -> tuple[Tensor, Tensor]:
    """Six small maps of few levels; regions of many sizes, two that touch at a corner, and two images without any."""
    masks = torch.zeros(6, 1, 9, 11, dtype=torch.bool)
    masks[0, 0, 1:4, 2:9], masks[0, 0, 7, 1] = True, True
    masks[1, 0, :2, :2], masks[1, 0, 2:4, 2:5], masks[1, 0, 8, 10] = True, True, True
    masks[2, 0, 3:6, 3:6], masks[2, 0, 4, 4] = True, False  # a ring
    masks[3, 0, :, ::4] = True
    rng = generator(0, "test aupro")
    maps = torch.randn(masks.shape, dtype=torch.float64, generator=rng) + 1.5 * masks
    return (maps * 4).round(), masks


@pytest.mark.parametrize("levels", [2, 7, 40, 1000])
def test_auroc_and_average_precision_are_those_of_scikit_learn_ties_included(levels: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, labels = scores_and_labels(levels)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


def test_auroc_is_how_often_an_anomaly_scores_above_a_normal_image() -> None:
    scores, labels = scores_and_labels(7, 60)
    above = scores[labels][:, None] - scores[~labels][None]
    assert auroc(scores, labels) == pytest.approx(((above > 0) + 0.5 * (above == 0)).double().mean().item(), abs=1e-12)
    assert auroc(labels.float(), labels) == average_precision(labels.float(), labels) == 1
    assert auroc(-labels.float(), labels) == 0
    assert auroc(torch.ones(60), labels) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_ranks_as_the_most_anomalous(value: float) -> None:
    labels = torch.tensor([True, False, True, False])
    assert auroc(torch.tensor([value, 1, 2, 0]), labels) == 1
    assert auroc(torch.tensor([3, value, 3, 0]), labels) == 0.5


@pytest.mark.parametrize(("label", "kind"), [(False, "normal"), (True, "anomalous")])
@pytest.mark.parametrize("metric", [auroc, average_precision])
def test_labels_of_one_class_are_an_error_and_not_nan(metric, label: bool, kind: str) -> None:
    with pytest.raises(DataError, match=f"all 3 images are {kind}"):
        metric(torch.rand(3), torch.tensor([label] * 3))
    for of_pixels in (pixel_auroc, aupro):
        with pytest.raises(DataError, match=f"all 18 pixels are {kind}"):
            of_pixels(torch.rand(2, 3, 3), torch.full((2, 3, 3), label))


def test_pixel_auroc_is_that_of_all_pixels_together() -> None:
    from sklearn.metrics import roc_auc_score

    maps, masks = maps_and_masks()
    theirs = roc_auc_score(masks.flatten(), maps.flatten())
    assert pixel_auroc(maps, masks) == pytest.approx(theirs, abs=1e-9)
    assert (
        abs(
            np.mean([roc_auc_score(m.flatten(), s.flatten()) for m, s in zip(masks[:4], maps[:4], strict=True)])
            - theirs
        )
        > 1e-3
    )


def test_connected_regions_are_those_of_scikit_image() -> None:
    from skimage.measure import label

    _, masks = maps_and_masks()
    rough = torch.rand(5, 23, 17, generator=generator(0, "test regions")) < 0.45
    spiral = torch.zeros(1, 21, 21, dtype=torch.bool)  # a long way from end to end
    spiral[0, 1::4], spiral[0, 3:-1:8, -1], spiral[0, 2::4, 0] = True, True, True
    for given in (masks[:, 0], rough, spiral, torch.ones(2, 3, 3, dtype=torch.bool), torch.zeros(1, 3, 3)):
        found = connected_regions(given)
        theirs = [torch.from_numpy(label(each.bool().numpy(), connectivity=2)) for each in given]
        assert found.max() == sum(int(each.max()) for each in theirs)
        for mine, other in zip(found, theirs, strict=True):
            pairs = {(int(a), int(b)) for a, b in zip(mine.flatten(), other.flatten(), strict=True)}
            assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
            assert ((mine == 0) == (other == 0)).all()


def aupro_word_by_word(maps: Tensor, masks: Tensor, limit: float) -> float:
    """Each threshold by itself, each region by itself, and an integral over a fine grid of false-positive rates."""
    from skimage.measure import label

    regions = []
    for scores, mask in zip(maps[:, 0].numpy(), masks[:, 0].numpy(), strict=True):
        numbered = label(mask, connectivity=2)
        regions += [scores[numbered == number] for number in range(1, numbered.max() + 1)]
    outside = maps[~masks].numpy()
    rates, overlaps = [0.0], [0.0]
    for threshold in sorted(set(maps.flatten().tolist()), reverse=True):
        rates.append(float((outside >= threshold).mean()))
        overlaps.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    grid = np.linspace(0, limit, 200_001)
    return float(np.trapezoid(np.interp(grid, rates, overlaps), grid) / limit)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_is_the_definition_taken_word_by_word(limit: float) -> None:
    maps, masks = maps_and_masks()
    expected = aupro_word_by_word(maps, masks, limit)
    assert 0.1 < expected < 0.95
    assert aupro(maps, masks, limit) == pytest.approx(expected, abs=1e-5)
    assert aupro(maps[:, 0], masks[:, 0], limit) == aupro(maps, masks, limit)


def test_aupro_of_a_perfect_map_is_one_and_of_a_constant_map_half_its_limit() -> None:
    _, masks = maps_and_masks()
    assert aupro(masks.double(), masks) == pytest.approx(1, abs=1e-12)
    assert aupro(torch.zeros(masks.shape), masks) == pytest.approx(0.15, abs=1e-12)


def test_aupro_counts_a_small_defect_as_much_as_a_large_one() -> None:
    masks = torch.zeros(1, 20, 20, dtype=torch.bool)
    masks[0, :10, :10], masks[0, 15, 15] = True, True
    large, small = masks.double(), masks.double()
    large[0, 15, 15], small[0, :10, :10] = -1, -1  # the other is missed altogether
    assert aupro(large, masks) == pytest.approx(aupro(small, masks), abs=1e-12) == pytest.approx(0.5, abs=1e-12)
    assert pixel_auroc(large, masks) > 0.98 and pixel_auroc(small, masks) < 0.02


def test_maps_of_another_shape_than_the_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(3, 4, 4\)"):
        aupro(torch.zeros(2, 4, 4), torch.zeros(3, 4, 4))
