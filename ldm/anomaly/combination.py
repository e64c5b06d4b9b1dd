"""Combination of scores: each on the scale of its own upper tail over normal images, then summed."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.shapes import Scalars


@dataclass(frozen=True)
class LogisticTail:
    """A smooth tail of a score over normal images: −log P(score > x) = log(1 + exp((x − location) / scale)).

    A score that is as high as the lower half of the normal ones counts next to nothing, whatever it is, and beyond them
    it counts in proportion: it never ends, so that images beyond every normal one still have an order. The sum over
    several scores is Fisher's combination (1932) of their p-values, smoothed.
    """

    location: float  # the median
    scale: float  # of a logistic distribution with this mean excess over the median, which is 2 ln 2 times it

    @classmethod
    def fit(cls, scores: Scalars) -> Self:
        """The tail of the scores of normal images."""
        values = scores.double()
        location = values.quantile(0.5)
        excess = (values - location).clamp_min(0).sum() / (values > location).sum().clamp_min(1)
        least = 1e-12 * max(float(location.abs()), 1e-12)  # of a score that is the same for all of them
        return cls(float(location), max(float(excess) / (2 * math.log(2)), least))

    def surprise(self, scores: Scalars) -> Tensor:
        """−log P(score > x) in nats, float64."""
        return F.softplus((scores.double() - self.location) / self.scale)


def combined(scores: dict[str, Tensor], tails: dict[str, LogisticTail]) -> Tensor:
    """The sum of the surprises, or the score itself where there is one; infinite where any is not a finite number."""
    if len(scores) == 1:
        (total,) = (each.double() for each in scores.values())
    else:
        total = torch.stack([tails[name].surprise(values) for name, values in scores.items()]).sum(0)
    finite = torch.stack([values.isfinite() for values in scores.values()]).all(0)
    return torch.where(finite, total, torch.inf)
