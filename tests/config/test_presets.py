"""Presets: a name that stands for several settings of a section."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from ldm.config import reader
from ldm.config.command_line import describe
from ldm.errors import ConfigError


@dataclass(frozen=True)
class Tent:
    """A tent."""

    kind: Literal["tent"] = "tent"
    poles: int = 1
    width: float = 1.0
    color: str = "green"

    PRESETS: ClassVar = {"S": {"poles": 1, "width": 1.5}, "L": {"poles": 4, "width": 3.0}}


@dataclass(frozen=True)
class Hut:
    """A hut."""

    kind: Literal["hut"] = "hut"
    width: float = 5.0


@dataclass(frozen=True)
class Camp:
    """A camp."""

    shelter: Tent | Hut = field(default_factory=Tent)
    nights: int = 1


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("", {"preset": "L"}, Tent(poles=4, width=3.0)),
        ("shelter: {preset: L}", {}, Tent(poles=4, width=3.0)),
        ("shelter: {preset: L, width: 2}", {}, Tent(poles=4, width=2.0)),
        ("shelter: {preset: L, color: red}", {"poles": "5"}, Tent(poles=5, width=3.0, color="red")),
        ("shelter: {poles: 2, color: red}", {"preset": "L"}, Tent(poles=4, width=3.0, color="red")),
        ("shelter: {preset: S}", {"preset": "L", "width": "9"}, Tent(poles=4, width=9.0)),
        ("shelter: {preset: L}", {"kind": "hut"}, Hut()),
    ],
)
def test_what_stands_beside_a_preset_wins_and_a_flag_wins_over_the_file(
    text: str, flags: dict[str, str], expected: Tent | Hut, tmp_path: Path
) -> None:
    """A flag's preset was without effect where the file said something else."""
    file = tmp_path / "camp.yaml"
    file.write_text(text or "nights: 1")
    camp = reader.load(Camp, file, {f"shelter.{name}": value for name, value in flags.items()})
    assert camp.shelter == expected
    (tmp_path / "again.yaml").write_text(reader.dump(camp))
    assert "preset" not in reader.dump(camp) and reader.load(Camp, tmp_path / "again.yaml", {}) == camp


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"shelter.preset": "XL"}, r"^--shelter\.preset is XL; expected S\|L; did you mean L\?"),
        ({"shelter.kind": "hut", "shelter.preset": "L"}, r"^--shelter\.preset is not a setting of kind hut"),
        ({"preset": "L"}, r"^--preset is not a setting"),
    ],
)
def test_a_preset_that_is_not_there_is_refused(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reader.load(Camp, None, flags)


def test_help_names_the_presets() -> None:
    assert "--shelter.preset S|L" in describe(Camp)
