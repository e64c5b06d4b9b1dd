"""Swappable parts: tables that name each part, say where it is defined, and what is known of it.

A table stands beside the config that chooses from it and imports nothing heavy, so that `--help`, the documentation,
`ldm verify` and the tests can read it; the part itself is imported when it is used.
"""

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """A function or class by the place of its definition, `package.module:name`."""

    place: str

    def load(self) -> Any:
        """The function or class."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)
