"""Split conformal prediction: thresholds and p-values with a false-alarm rate that holds, from normal scores alone.

The calibration scores are of normal images that nothing was fitted to. If a new normal image is exchangeable with them,
its score exceeds the threshold with probability alpha at most, whatever the score is (Vovk et al. 2005; Laxhammar and
Falkman 2010). The guarantee is marginal: over the draw of the calibration images as well as of the new one.
"""

import math

import torch
from torch import Tensor

from ldm.errors import ConfigError, DataError
from ldm.shapes import Scalars


def conformal_threshold(calibration: Scalars, alpha: float) -> float:
    """The ⌈(n + 1)(1 − α)⌉-th smallest of n calibration scores: an image whose score is above it is an anomaly."""
    check_enough(len(calibration), alpha)
    if not bool(torch.isfinite(calibration).all()):
        count = int((~torch.isfinite(calibration)).sum())
        raise DataError(f"{count} of {len(calibration)} calibration scores are not finite numbers")
    return float(calibration.double().sort().values[threshold_place(len(calibration), alpha) - 1])


def threshold_place(count: int, alpha: float) -> int:
    """⌈(n + 1)(1 − α)⌉, without the rounding errors that would push a whole number over the next one."""
    return math.ceil(round((count + 1) * (1 - alpha), 9))


def check_enough(count: int, alpha: float, uses: str = "") -> None:
    """Raise DataError for so few calibration images that no threshold among their scores has this false-alarm rate.

    `uses` says what all of the normal images are for.
    """
    check_alpha(alpha)
    if threshold_place(count, alpha) > count:
        raise DataError(
            f"{count} calibration images cannot hold a false-alarm rate of {alpha:g}: give at least"
            f" {images_needed(alpha)} to calibrate with, or allow a rate of {math.ceil(1e4 / (count + 1)) / 1e4:g}"
            + (f" ({uses})" if uses else "")
        )


def rate_spread(count: int, alpha: float) -> float:
    """The standard deviation of the false-alarm rate over calibration sets of this size.

    With continuous scores the rate of one threshold is distributed as Beta(n + 1 − k, k), k being its place.
    """
    place = threshold_place(count, alpha)
    return math.sqrt((count + 1 - place) * place / ((count + 1) ** 2 * (count + 2)))


def images_needed(alpha: float) -> int:
    """The fewest calibration images that can hold a false-alarm rate: 1 / α − 1."""
    return max(math.ceil(round(1 / alpha - 1, 9)), 1)


def conformal_p_values(scores: Scalars, calibration: Scalars) -> Tensor:
    """(1 + the number of calibration scores that are as high) / (n + 1), float64: small for an anomaly.

    The p-value of a normal image is α or less with probability α at most. They are ranks, and tie beyond the highest
    calibration score; a score that is not a finite number stands beyond it too.
    """
    ordered = calibration.double().cpu().sort().values
    scores = torch.nan_to_num(scores.double().cpu(), nan=math.inf, posinf=math.inf, neginf=math.inf)
    as_high = len(ordered) - torch.searchsorted(ordered, scores.contiguous(), side="left")
    return (1 + as_high).double() / (len(ordered) + 1)


def benjamini_hochberg(p_values: Tensor, q: float) -> Tensor:
    """The selection among a batch whose expected share of false discoveries is at most q (Benjamini, Hochberg 1995).

    With conformal p-values of one calibration set it still holds, as they depend on each other positively (Bates et
    al. 2023).
    """
    if not 0 < q < 1:
        raise ConfigError(f"the false-discovery rate {q:g} must be above 0 and below 1")
    count = len(p_values)
    ordered = p_values.double().sort().values
    allowed = q * torch.arange(1, count + 1, dtype=torch.float64) / count
    passed = torch.nonzero(ordered <= allowed * (1 + 1e-12))
    if not len(passed):
        return torch.zeros(count, dtype=torch.bool)
    return p_values <= ordered[int(passed[-1])]


def check_alpha(alpha: float) -> None:
    """Raise ConfigError for what is no false-alarm rate."""
    if not 0 < alpha < 1:
        raise ConfigError(f"the false-alarm rate alpha {alpha:g} must be above 0 and below 1")
