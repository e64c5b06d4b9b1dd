"""Presets: named sets of values for some settings of a section, such as the size of a network.

A section that has some lists them as its class variable `PRESETS`. Its `preset` is none of its fields: what becomes of
it are the values, and they are what `ldm.config.reader.dump` writes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

PRESET = "preset"
PRESET_HELP = "a size, which stands for several of the settings below; any that is given beside it wins"


def presets_of(cls: Any) -> dict[str, dict[str, Any]]:
    """The presets of a section by name; empty for one without any."""
    return getattr(cls, "PRESETS", {})


def with_preset(
    cls: Any, given: dict[str, Any], path: str, flags: Mapping[str, str], choice: Callable[[Any, Any, str], Any]
) -> dict[str, Any]:
    """The settings of the preset that is named, and over them those given; but a flag's preset wins over the file.

    `path` is the dotted name of the section's `preset`, and `choice` reads what stands there.
    """
    presets = presets_of(cls)
    if not presets or not (PRESET in given or path in flags):
        return given
    settings = presets[choice(Literal[tuple(presets)], given.get(PRESET), path)]
    others = {name: value for name, value in given.items() if name != PRESET}
    return others | settings if path in flags else settings | others
