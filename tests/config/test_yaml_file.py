"""YAML says what a person means by it, is written as it is read, and is refused where it is wrong or dangerous."""

import math
from pathlib import Path
from typing import Any

import pytest

from ldm.config.yaml_file import from_yaml, inline, read_yaml, shorten, to_yaml
from tests.support.example_configs import refusal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1_0.5", -10.5),
        (".5", 0.5),
        ("1_000", 1000),
        ("0", 0),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("[1, {a: null}]", [1, {"a": None}]),
    ],
)
def test_plain_values_are_what_they_look_like(text: str, value: Any) -> None:
    assert from_yaml(text) == value and type(from_yaml(text)) is type(value)


def test_a_leading_zero_makes_no_octal_number() -> None:
    assert from_yaml("010") == 10


@pytest.mark.parametrize("text", ["no", "on", "1:30", "2020-01-01", "1.2.3", "0x10", "<<", "="])
def test_what_merely_looks_special_is_text(text: str) -> None:
    assert from_yaml(text) == text


@pytest.mark.parametrize(
    "value",
    [
        *(1e-4, 1e22, 5e-324, math.pi, 1.7976931348623157e308, 0.1 + 0.2, 10**16, True, None),
        *("1e-4", "null", "no", "12", "1:30", "a: b", "# x", " x ", "a\nb\n", "é 漢 🙂", "", "x " * 99),
        {"b": [1, [2.0, "3"]], "a": {"c": []}},
    ],
    ids=repr,
)
def test_what_is_written_is_read_back_the_same(value: Any) -> None:
    assert from_yaml(to_yaml(value)) == value and type(from_yaml(to_yaml(value))) is type(value)


def test_mappings_keep_their_order_and_lists_stay_on_one_line() -> None:
    assert to_yaml({"b": [1, 2], "a": {"c": "x"}}) == "b: [1, 2]\na:\n  c: x\n"


def test_a_value_within_a_sentence_is_short_and_on_one_line() -> None:
    assert [inline(value) for value in (1e-4, "0.1", None, True, [1, "a"], {"a": "b"}, "")] == [
        "0.0001",
        "'0.1'",
        "null",
        "true",
        "[1, a]",
        "{a: b}",
        "''",
    ]
    assert len(inline(list(range(1000)))) == 80
    assert inline(Path("a")).endswith("Path")


def test_shortening_joins_lines_and_marks_the_cut() -> None:
    assert shorten(" a\n  b ") == "a b"
    assert shorten("x" * 80) == "x" * 80 and shorten("x" * 81) == "x" * 77 + "..."
    assert shorten("abcdef", 5) == "ab..."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("images: [", "line 1: "),
        ("a: b: c", "line 1: "),
        ("a: {b: 1}\nc: 2\na: {b: 3}", "line 3: a is set twice"),
        ("a:\n  b: 1\n  b: 1", "line 3: b is set twice"),
        ("a: 1\n---\nb: 2", "line 2: "),
        ("a: *nobody", "line 1: found undefined alias"),
        ("? [a]\n: 1", "line 1: "),
        ('a: "\\UFFFFFFFF"', ""),
        ("[" * 500, ""),
        ("a: \x07", ""),
        ("a: " + "9" * 5000, ""),
        ("a: !!python/object/apply:os.getcwd []", "line 1: tags such as !!python are refused"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_is_not_plain_yaml_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    message = refusal(read_yaml, file)
    assert message.startswith(f"{file}: {says}") and len(message) < 600


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(read_yaml, tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'} cannot be read")
    assert refusal(read_yaml, tmp_path).startswith(f"{tmp_path} cannot be read")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert refusal(read_yaml, tmp_path / "binary.yaml").startswith(f"{tmp_path / 'binary.yaml'}: ")
