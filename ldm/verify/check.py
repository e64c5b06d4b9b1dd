"""A closed-form check: the value that was measured, the bound it is held to, and pass or fail."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Check:
    """`value` against `bound`; without a bound it is information, and with a `reason` it could not be measured."""

    name: str
    value: float = math.nan
    bound: float | None = None
    sense: Literal["<=", ">="] = "<="
    reason: str = ""

    @property
    def fails(self) -> bool:
        """Whether it is on the wrong side of its bound, as what is not a number always is."""
        if self.bound is None:
            return False
        return not (self.value <= self.bound if self.sense == "<=" else self.value >= self.bound)

    @property
    def verdict(self) -> str:
        """One word, or the reason why there is none."""
        if self.reason:
            return f"skipped: {self.reason}"
        return "FAIL" if self.fails else "info" if self.bound is None else "pass"


def at_most(name: str, value: float | Tensor, bound: float) -> Check:
    """A value that must not be above its bound."""
    return Check(name, number(value), bound, "<=")


def at_least(name: str, value: float | Tensor, bound: float) -> Check:
    """A value that must not be below its bound."""
    return Check(name, number(value), bound, ">=")


def info(name: str, value: float | Tensor) -> Check:
    """A value without a bound."""
    return Check(name, number(value))


def skipped(name: str, reason: str) -> Check:
    """A value that cannot be measured here, which is not a failure."""
    return Check(name, reason=reason)


def number(value: float | Tensor) -> float:
    """What a tensor of one element holds."""
    return float(value.detach() if isinstance(value, Tensor) else value)
