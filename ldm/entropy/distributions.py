"""Smooth distributions of integers around 0: a kernel estimate whose width is cross-validated, with a logistic tail."""

import math
from collections.abc import Sequence

import numpy as np

from ldm.entropy.tables import LARGEST_STEP, MASS, CumulativeTables

REACH = 8  # standard deviations to each side; beyond them symbols are escaped
TAIL = 64.0  # samples that the logistic distribution counts for
WIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the kernel, in standard deviations
LEAST = 1e-12  # probability of one position, so that no logarithm is infinite


def smoothed(samples: np.ndarray, deviation: float) -> np.ndarray:
    """The cumulative function, as `CumulativeTables` has it, of integers whose standard deviation is about this.

    The histogram is convolved with a Gaussian. Half of the samples choose its width, by the likelihood of the others.
    A logistic distribution of that standard deviation is mixed in, and is all there is without samples.
    """
    reach = int(min(math.ceil(REACH * deviation), 2 * LARGEST_STEP - 1))
    halves = [counts_of(samples[start::2], reach) for start in (0, 1)]
    tail = logistic(deviation, reach)

    def density(counts: np.ndarray, width: float) -> np.ndarray:
        estimate = (convolved(counts, width * deviation) + TAIL * tail) / (counts.sum() + TAIL)
        return np.maximum(estimate, LEAST)

    def likelihood(width: float) -> float:
        pairs = (halves, halves[::-1])
        return sum(float(other @ np.log(density(counts, width))) for counts, other in pairs)

    width = max(WIDTHS, key=likelihood)
    found = density(halves[0] + halves[1], width)
    outside = len(samples) - halves[0].sum() - halves[1].sum()
    kept = 1 - (outside + TAIL * (1 - tail.sum())) / (len(samples) + TAIL)
    # Of what lies outside one half is below. The density of a position is spread evenly up to the next one.
    return np.rint(MASS * ((1 - kept) / 2 + kept * np.cumsum(np.append(0, found)) / found.sum())).astype(np.int64)


def counts_of(samples: np.ndarray, reach: int) -> np.ndarray:
    """How many samples there are at each position from -reach to reach - 1."""
    inside = samples[(samples >= -reach) & (samples < reach)]
    return np.bincount(inside + reach, minlength=2 * reach).astype(np.float64)


def logistic(deviation: float, reach: int) -> np.ndarray:
    """The probability of each position under a logistic distribution around 0."""
    scale = deviation * math.sqrt(3) / math.pi
    cumulative = 1 / (1 + np.exp(-np.clip((np.arange(-reach, reach + 1) - 0.5) / scale, -700, 700)))
    found: np.ndarray = np.diff(cumulative)
    return found


def convolved(counts: np.ndarray, width: float) -> np.ndarray:
    """Counts convolved with a Gaussian of this standard deviation in positions; what would leave is reflected."""
    far = min(math.ceil(4 * width), len(counts))
    if width < 0.3:
        return counts
    kernel = np.exp(-0.5 * (np.arange(-far, far + 1) / width) ** 2)
    padded = np.pad(counts, far, mode="symmetric")
    size = 1 << (len(padded) + len(kernel)).bit_length()
    product = np.fft.irfft(np.fft.rfft(padded, size) * np.fft.rfft(kernel / kernel.sum(), size), size)
    found: np.ndarray = np.maximum(product[2 * far : 2 * far + len(counts)], 0)
    return found


def joined(cumulative: Sequence[np.ndarray]) -> CumulativeTables:
    """Several distributions as tables."""
    reaches = np.array([len(each) // 2 for each in cumulative], dtype=np.int64)
    return CumulativeTables(reaches, np.concatenate(cumulative))
