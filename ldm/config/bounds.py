"""Bounds of a setting, declared beside its type: `steps: Annotated[int, AtLeast(1)] = 1000`.

The reader refuses a value outside, `--help` prints the bounds, and a config that is built in Python is checked too, as
it inherits from `Checked`. What is left for a `__post_init__` is a relation between several settings.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Interval:
    """Finite numbers from `low` to `high`; an open end is not itself allowed."""

    low: float
    high: float = math.inf
    low_is_open: bool = False
    high_is_open: bool = False

    def admits(self, value: Any) -> bool:
        """Whether it is a finite number in the interval."""
        is_number = isinstance(value, Real)
        if not is_number or abs(value) == math.inf:
            return False
        above = value > self.low if self.low_is_open else value >= self.low
        return above and (value < self.high if self.high_is_open else value <= self.high)

    def __str__(self) -> str:
        """In words, to stand behind "a number": "at least 1", "from 0 to 1", "above 0 and below 1"."""
        if self.high == math.inf:
            return f"{'above' if self.low_is_open else 'at least'} {self.low:g}"
        if not self.low_is_open and not self.high_is_open:
            return f"from {self.low:g} to {self.high:g}"
        low = f"{'above' if self.low_is_open else 'at least'} {self.low:g}"
        return f"{low} and {'below' if self.high_is_open else 'at most'} {self.high:g}"


def AtLeast(low: float) -> Interval:
    """low <= value"""
    return Interval(low)


def Above(low: float) -> Interval:
    """low < value"""
    return Interval(low, low_is_open=True)


def Between(low: float, high: float, *, low_is_open: bool = False, high_is_open: bool = False) -> Interval:
    """low <= value <= high"""
    return Interval(low, high, low_is_open, high_is_open)


@dataclass(frozen=True, eq=False)
class OneOf:
    """The names in a table of swappable parts."""

    table: Mapping[str, object]

    def admits(self, value: object) -> bool:
        """Whether a part is called so."""
        return value in self.table

    def __str__(self) -> str:
        """The names, as choices are spelled."""
        return "|".join(self.table)


class Checked:
    """A config whose values are checked against their declared bounds whoever builds it."""

    def __post_init__(self) -> None:
        """Raise ValueError for the first setting that is out of bounds."""
        for name, kind in types_of(type(self)).items():
            for expected in violated(kind, getattr(self, name)):
                raise ValueError(f"{name} must be {expected}, not {getattr(self, name)}")


_types: dict[type, dict[str, Any]] = {}


def types_of(cls: Any) -> dict[str, Any]:
    """The types of a config's fields, with their bounds."""
    if cls not in _types:
        found = get_type_hints(cls, include_extras=True)
        _types[cls] = {field.name: found[field.name] for field in fields(cls)}
    return _types[cls]


def bounds_of(kind: Any) -> tuple[Interval | OneOf, ...]:
    """The bounds that are declared at the top of a type."""
    found = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return tuple(each for each in found if isinstance(each, Interval | OneOf))


def declared_ranges(kind: Any) -> list[str]:
    """The ranges of a setting and of its elements in words, each once; choices stand in the name of its type."""
    own = [str(bounds) for bounds in bounds_of(kind) if isinstance(bounds, Interval)]
    inner = [words for part in get_args(kind) for words in declared_ranges(part)]
    return list(dict.fromkeys([*own, *inner]))


def violated(kind: Any, value: Any) -> Iterator[str]:
    """What a type declares and a value of it breaks, in words; of a union what the members do that it could be."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from (str(bounds) for bounds in bounds_of(kind) if not bounds.admits(value))
    elif origin in (Union, UnionType):
        options = [option for option in args if could_be(option, value)]
        broken = [list(violated(option, value)) for option in options]
        if broken and all(broken):
            yield from broken[0]
    elif origin is tuple and isinstance(value, tuple | list):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            yield f"{len(kinds)} values"
        for inner, item in zip(kinds, value, strict=False):
            yield from violated(inner, item)


def could_be(kind: Any, value: Any) -> bool:
    """Whether a value has the plain type of a member of a union, bounds aside."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if plain is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if get_origin(plain) is tuple:
        return isinstance(value, tuple | list)
    return isinstance(value, get_origin(plain) or plain) if isinstance(get_origin(plain) or plain, type) else False
