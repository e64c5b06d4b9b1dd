"""The search for a step of quantization: the one that is given, the finest under a rate, the coarsest above a PSNR."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ldm.entropy.tables import LARGEST_STEP, POSITIONS
from ldm.errors import RequestError

Measure = Callable[[int], float]  # of a step in positions


@dataclass(frozen=True)
class Target:
    """What a file is to be: one of `step`, `rate` and `psnr` is not None."""

    step: float | None = None
    rate: float | None = None
    psnr: float | None = None

    def chosen(self, bits_per_pixel: Measure, decibels: Measure) -> int:
        """The step in positions, or RequestError with what is in reach."""
        if self.step is not None:
            return round(self.step * POSITIONS)
        if self.rate is not None:
            rate = self.rate
            if (least := bits_per_pixel(LARGEST_STEP)) > rate:
                reach = f"from {least:.4g} to {bits_per_pixel(1):.4g} bits per pixel"
                raise RequestError("rate", f"{rate:g} is out of reach: this image takes {reach}")
            return bisected(lambda step: bits_per_pixel(step) <= rate, 0, LARGEST_STEP)[1]
        assert self.psnr is not None
        psnr = self.psnr
        if (most := decibels(1)) < psnr:
            reach = f"from {decibels(LARGEST_STEP):.2f} to {most:.2f} dB"
            raise RequestError("psnr", f"{psnr:g} is out of reach: the autoencoder gives this image {reach}")
        return bisected(lambda step: decibels(step) < psnr, 1, LARGEST_STEP + 1)[0]


def target_of(step: float | None, rate: float | None, psnr: float | None) -> Target:
    """The target, or RequestError unless exactly one is given and is a possible number."""
    given = {name: value for name, value in (("step", step), ("rate", rate), ("psnr", psnr)) if value is not None}
    if len(given) != 1:
        raise RequestError("step", f"or rate or psnr must be given, and one of them alone, not {len(given)}")
    ((name, value),) = given.items()
    if not math.isfinite(value) or value <= 0:
        raise RequestError(name, f"{value:g} must be a number above 0")
    if step is not None and not 1 <= round(step * POSITIONS) <= LARGEST_STEP:
        raise RequestError("step", f"{step:g} must be from {1 / POSITIONS:.4g} to {LARGEST_STEP / POSITIONS:g}")
    return Target(step, rate, psnr)


def bisected(holds: Callable[[int], bool], low: int, high: int) -> tuple[int, int]:
    """Two neighbors, of which the lower does not hold and the upper does; `low` and `high` are taken to be such."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high
