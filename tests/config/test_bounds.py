"""Bounds beside a type: checked in Python and by the reader, in the same words, and printed by --help."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from ldm.config import reader
from ldm.config.bounds import Above, AtLeast, Between, Checked, Interval, OneOf
from ldm.config.command_line import describe
from tests.support.example_configs import refusal

SHAPES = {"disc": 1, "square": 2}
Fraction = Annotated[float, Between(0, 1, high_is_open=True)]


@dataclass(frozen=True)
class Bounded(Checked):
    steps: Annotated[int, AtLeast(1)] = 10  # updates
    rates: tuple[Fraction, Fraction] = (0.0, 0.5)
    widths: tuple[Annotated[int, AtLeast(1)], ...] = (8,)
    sigma: Annotated[float, Above(0)] | tuple[Annotated[float, Above(0)], Annotated[float, Above(0)]] = 1.0
    emphasis: Annotated[float, Between(0, 1)] | None = None
    shape: Annotated[str, OneOf(SHAPES)] = "disc"
    lower: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lower > self.steps:
            raise ValueError(f"lower must be at most steps {self.steps}, not {self.lower}")


@dataclass(frozen=True)
class Outer:
    inner: Bounded = Bounded()


WRONG: list[tuple[str, Any, str, str]] = [
    ("steps", 0, "steps must be at least 1, not 0", "a whole number (at least 1)"),
    (
        "rates",
        [0.5, 1.0],
        "rates must be at least 0 and below 1, not (0.5, 1.0)",
        "[a finite number, a finite number] (at least 0 and below 1)",
    ),
    (
        "rates",
        [0.5],
        "rates must be 2 values, not (0.5,)",
        "[a finite number, a finite number] (at least 0 and below 1)",
    ),
    ("widths", [8, 0], "widths must be at least 1, not (8, 0)", "[a whole number, ...] (at least 1)"),
    (
        "sigma",
        0.0,
        "sigma must be above 0, not 0.0",
        "a finite number or [a finite number, a finite number] (above 0)",
    ),
    (
        "sigma",
        [1.0, -1.0],
        "sigma must be above 0, not (1.0, -1.0)",
        "a finite number or [a finite number, a finite number] (above 0)",
    ),
    ("emphasis", 1.5, "emphasis must be from 0 to 1, not 1.5", "a finite number or null (from 0 to 1)"),
    ("shape", "disk", "shape must be disc|square, not disk", "disc|square; did you mean disc?"),
]


@pytest.mark.parametrize(
    ("interval", "words", "inside", "outside"),
    [
        (AtLeast(1), "at least 1", (1, 2.5, 10**400), (0, 0.999, -1)),
        (Above(0), "above 0", (5e-324, 1), (0, -0.0, -1)),
        (Between(0, 1), "from 0 to 1", (0, 0.5, 1), (-0.1, 1.1)),
        (Between(0, 1, low_is_open=True), "above 0 and at most 1", (0.1, 1), (0, 1.1)),
        (Between(0, 1, high_is_open=True), "at least 0 and below 1", (0, 0.9), (-0.1, 1)),
        (Between(-1, 1, low_is_open=True, high_is_open=True), "above -1 and below 1", (0,), (-1, 1)),
    ],
    ids=str,
)
def test_interval_admits_what_its_words_say(
    interval: Interval, words: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert str(interval) == words
    assert all(interval.admits(value) for value in inside)
    assert not any(interval.admits(value) for value in (*outside, math.nan, math.inf, -math.inf, None, "1", (1,)))


def test_one_of_admits_the_names_of_its_table() -> None:
    names = OneOf(SHAPES)
    assert str(names) == "disc|square"
    assert names.admits("disc") and not names.admits("disk") and not names.admits(1)


@pytest.mark.parametrize(("name", "value", "in_python", "expected"), WRONG, ids=lambda value: str(value)[:20])
def test_value_out_of_bounds_is_refused_in_python_and_by_the_reader(
    name: str, value: Any, in_python: str, expected: str
) -> None:
    with pytest.raises(ValueError) as refused:
        Bounded(**{name: tuple(value) if isinstance(value, list) else value})
    assert str(refused.value) == in_python
    in_file = refusal(reader.from_dict, Outer, {"inner": {name: value}})
    assert in_file.startswith(f"inner.{name} is ") and in_file.endswith(f"; expected {expected}")
    in_flag = refusal(reader.load, Outer, None, {f"inner.{name}": str(value)})
    assert in_flag.startswith(f"--inner.{name} is ") and in_flag.endswith(f"; expected {expected}")


def test_value_at_its_bounds_is_taken() -> None:
    given = {"steps": 1, "rates": [0, 0.999], "widths": [], "sigma": [1e-9, 2], "emphasis": 1, "shape": "square"}
    read = reader.from_dict(Outer, {"inner": given}).inner
    assert read == Bounded(1, (0.0, 0.999), (), (1e-9, 2.0), 1.0, "square")
    assert Bounded(emphasis=None, sigma=3) == reader.from_dict(Bounded, {"sigma": 3})


def test_relation_between_fields_follows_the_bounds() -> None:
    with pytest.raises(ValueError, match=r"^steps must be at least 1"):
        Bounded(steps=0, lower=1)
    with pytest.raises(ValueError, match=r"^lower must be at most steps 10, not 11"):
        Bounded(lower=11)


def test_help_prints_the_range_once_and_choices_as_the_type() -> None:
    lines = [" ".join(line.split()) for line in describe(Bounded).splitlines()]
    assert lines == [
        "--steps INT updates (at least 1) [10]",
        "--rates [FLOAT, FLOAT] (at least 0 and below 1) [0.0, 0.5]",
        "--widths [INT, ...] (at least 1) [8]",
        "--sigma FLOAT|[FLOAT, FLOAT] (above 0) [1.0]",
        "--emphasis FLOAT|null (from 0 to 1) [null]",
        "--shape disc|square [disc]",
        "--lower INT [0]",
    ]
