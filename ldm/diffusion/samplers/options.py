"""Requests for a sampler: its options, and what they need of a model; without torch, so that flags are read with it."""

import math
from collections.abc import Mapping
from typing import Protocol

from ldm.diffusion.config import SAMPLER_OPTIONS, SAMPLERS
from ldm.errors import RequestError


class NoiseGrid(Protocol):
    """What `SamplingConfig` says of the noise levels of a model, and of its own sampler."""

    @property
    def sigma_min(self) -> float: ...

    @property
    def sigma_max(self) -> float: ...

    @property
    def rho(self) -> float: ...

    @property
    def sampler(self) -> str: ...


def check_sampler(sampler: str) -> None:
    """Raise RequestError for one that is not in the table."""
    if sampler not in SAMPLERS:
        raise RequestError("sampler", f"{sampler} is not one of {', '.join(SAMPLERS)}")


def checked_options(sampler: str, given: Mapping[str, float | None], skip: str, grid: NoiseGrid) -> dict[str, float]:
    """The options of a sampler that are given, where None is not; RequestError for what it or the model cannot do.

    `skip` is the kind of the model's skip.
    """
    check_sampler(sampler)
    facts = SAMPLERS[sampler]
    if facts.gaussian and skip != "gaussian":
        raise RequestError(
            "sampler",
            f"{sampler} needs a model with denoiser.skip.kind gaussian, and this one has {skip}",
        )
    if facts.consistency != SAMPLERS[grid.sampler].consistency:
        raise RequestError(
            "sampler",
            f"{sampler} needs a model with objective.kind consistency, and this one is a denoiser: use {grid.sampler}"
            if facts.consistency
            else f"{sampler} needs a denoiser, and this model was tuned for few steps: use {grid.sampler}",
        )
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name not in SAMPLER_OPTIONS:
            raise RequestError(name, f"is not one of the options of samplers: {', '.join(SAMPLER_OPTIONS)}")
        if name not in facts.options:
            takes = ", ".join(each for each, other in SAMPLERS.items() if name in other.options)
            raise RequestError(name, f"is an option of {takes}, and not of {sampler}")
        check_bounds(name, value)
    for low, high in (("churn_min", "churn_max"), ("restart_min", "restart_max")):
        if low in options and high in options and not options[low] < options[high]:
            raise RequestError(low, f"{options[low]:g} must be below {high} {options[high]:g}")
    start = options.get("gaussian_start")
    if start is not None and not grid.sigma_min < start <= grid.sigma_max:
        raise RequestError(
            "gaussian_start", f"{start:g} must be above {grid.sigma_min:g} and at most {grid.sigma_max:g} in this model"
        )
    second = options.get("second_sigma")
    if second is not None and not grid.sigma_min < second < grid.sigma_max:
        raise RequestError(
            "second_sigma", f"{second:g} must be above {grid.sigma_min:g} and below {grid.sigma_max:g} in this model"
        )
    return {name: int(value) if SAMPLER_OPTIONS[name].whole else value for name, value in options.items()}


def check_bounds(name: str, value: float) -> None:
    """Raise RequestError for a value that an option cannot have."""
    bounds = SAMPLER_OPTIONS[name]
    try:
        is_finite = math.isfinite(value)
    except (TypeError, ValueError):  # a word, several numbers
        is_finite = False
    if not is_finite:
        raise RequestError(name, f"{value!r} must be a finite number")
    if bounds.whole and value != int(value):
        raise RequestError(name, f"{value:g} must be a whole number")
    if not bounds.low <= value <= bounds.high:
        most = f" and at most {bounds.high:g}" if bounds.high < math.inf else ""
        raise RequestError(name, f"{value:g} must be at least {bounds.low:g}{most}")
