"""Metrics of anomaly detection: of images and of pixels, exact over all thresholds, ties included.

Scores are higher for what is more anomalous; labels and masks are true where there is an anomaly. A score that is not
a finite number ranks above all others, as it is taken for an anomaly.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ldm.errors import DataError

LIMIT = 0.3  # the largest false-positive rate that AUPRO is integrated to (Bergmann et al. 2021)


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Area under the receiver operating characteristic: how often an anomaly scores above a normal image.

    A tie counts one half. Equal to scikit-learn's `roc_auc_score`.
    """
    found = _counts_by_threshold(scores, labels)
    twice = (found.positives + _before(found.positives)) * _increments(found.negatives)
    return int(twice.sum()) / (2 * int(found.positives[-1]) * int(found.negatives[-1]))


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean precision over the anomalies, each at its own score as the threshold: scikit-learn's step-wise sum."""
    found = _counts_by_threshold(scores, labels)
    precision = found.positives.double() / (found.positives + found.negatives)
    return float((_increments(found.positives) * precision).sum() / found.positives[-1])


def pixel_auroc(maps: Tensor, masks: Tensor) -> float:
    """AUROC over the pixels of all images; maps and masks have one shape."""
    _check_same_shape(maps, masks)
    _check_both_kinds(masks.bool().flatten(), "pixels")
    return auroc(maps.flatten(), masks.flatten())


def aupro(maps: Tensor, masks: Tensor, limit: float = LIMIT) -> float:
    """Area under the per-region overlap over false-positive rates from 0 to `limit`, divided by `limit`.

    The overlap of a region, 8-connected in its mask, is the share of its pixels that lie at the threshold or above; a
    small defect counts as much as a large one (Bergmann et al. 2021). The false-positive rate is that of the pixels
    outside of the masks, of all images. Both are taken at every threshold there is, with straight lines between them.

    `maps` and `masks` are B H W or B 1 H W.
    """
    _check_same_shape(maps, masks)
    if not 0 < limit <= 1:
        raise ValueError(f"limit {limit} of a false-positive rate is not above 0 and at most 1")
    regions = connected_regions(masks.reshape(-1, *masks.shape[-2:])).flatten()
    scores, labels = _ranked(maps.flatten()), regions > 0
    _check_both_kinds(labels, "pixels")
    sizes = torch.bincount(regions).double()
    weights = torch.where(labels, 1 / (sizes[regions] * (len(sizes) - 1)), 0.0)
    order = scores.argsort(descending=True)
    ends = _ends_of_ties(scores[order])
    overlap = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)[ends]])
    outside = ~labels[order]
    rate = torch.cat([weights.new_zeros(1), outside.cumsum(0)[ends].double() / outside.sum()])
    return _area_up_to(rate, overlap, limit) / limit


def connected_regions(masks: Tensor) -> Tensor:
    """The 8-connected regions of masks [B, H, W], numbered from 1 over all of them; 0 outside; int64.

    Each pixel takes the largest number around it, and then the number of the pixel that this names, until none changes.
    """
    inside, nothing = masks.bool(), masks.new_zeros(1, dtype=torch.float64)
    numbers = (
        torch.arange(1, inside.numel() + 1, dtype=torch.float64, device=masks.device).reshape(inside.shape) * inside
    )
    while True:
        grown = max_pool2d(numbers[:, None], 3, stride=1, padding=1)[:, 0] * inside
        named = torch.cat([nothing, grown.flatten()])[grown.long()]
        if torch.equal(named, numbers):
            break
        numbers = named
    _, places = torch.cat([nothing, numbers.flatten()]).unique(return_inverse=True)
    return places[1:].reshape(inside.shape)


class _Counts(NamedTuple):
    """Anomalies and normal ones at or above each distinct score, from the highest on; int64."""

    positives: Tensor
    negatives: Tensor


def _counts_by_threshold(scores: Tensor, labels: Tensor) -> _Counts:
    _check_same_shape(scores, labels)
    labels, scores = labels.bool(), _ranked(scores)
    _check_both_kinds(labels, "images")
    order = scores.argsort(descending=True)
    ends = _ends_of_ties(scores[order])
    positives = labels[order].cumsum(0)[ends]
    return _Counts(positives, ends + 1 - positives)


def _ranked(scores: Tensor) -> Tensor:
    scores = scores.detach().double()
    return torch.where(scores.isfinite(), scores, math.inf)


def _ends_of_ties(descending: Tensor) -> Tensor:
    """The last place of each distinct value."""
    last = torch.ones_like(descending[:1], dtype=torch.bool)
    return torch.cat([descending[1:] != descending[:-1], last]).nonzero()[:, 0]


def _before(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts[:-1]])


def _increments(counts: Tensor) -> Tensor:
    return counts - _before(counts)


def _area_up_to(x: Tensor, y: Tensor, limit: float) -> float:
    """The area below straight lines between points whose x never falls, from x = 0 to `limit`."""
    inside = int((x <= limit).sum())
    if inside < len(x):
        share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
        x = torch.cat([x[:inside], x.new_tensor([limit])])
        y = torch.cat([y[:inside], torch.lerp(y[inside - 1], y[inside], share)[None]])
    return float(torch.trapezoid(y, x))


def _check_same_shape(scores: Tensor, labels: Tensor) -> None:
    if scores.numel() != labels.numel() or scores.shape[0] != labels.shape[0]:
        raise ValueError(f"scores of shape {tuple(scores.shape)}, labels of shape {tuple(labels.shape)}")


def _check_both_kinds(labels: Tensor, what: str) -> None:
    found = int(labels.sum())
    if found in (0, len(labels)):
        kind = "anomalous" if found else "normal"
        raise DataError(f"all {len(labels)} {what} are {kind}: detection is measured on normal and anomalous ones")
