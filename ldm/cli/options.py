"""Options that several verbs share: what is checked of them, and the images that they describe."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ldm.data.config import DataConfig, DataSourceConfig, FolderConfig
from ldm.errors import ConfigError


def check_at_least_one(options: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError for one of these options that is given and not at least 1."""
    for name in names:
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")


def check_new(flag: str, path: Path) -> None:
    """Raise ConfigError if what a flag names is there already, or would be in no folder."""
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{flag} {path} exists, and nothing is overwritten: name a new one")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"{flag} {path} cannot be written: it is in no folder")


def nearest(name: str, names: Iterable[str], most: int = 12) -> str:
    """Advice for a name that is none of these: the one that is most like it, or some of them."""
    known = list(names)
    near = get_close_matches(name, known, n=1)
    more = ", ..." if len(known) > most else ""
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known[:most])}{more}"


def size_of(text: str | None) -> int | tuple[int, int] | None:
    """`--size`: what data.size is; None where it is not given."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"--size {text} is neither a number of pixels nor HEIGHTxWIDTH")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def images_as_in_run(
    path: str,
    *,
    run: str,
    run_data: DataSourceConfig | None,
    size: int | tuple[int, int] | None,
    channels: int,
    **changes: Any,
) -> FolderConfig:
    """The config of other images than a run's, read as the run reads its own, but for `size` and `changes`."""
    if run_data is None and size is None:
        raise ConfigError(f"--size is missing: {run} is not a run of train_vae.py, to take it from")
    shared = {} if run_data is None else {each.name: getattr(run_data, each.name) for each in fields(DataConfig)}
    described = {"path": path, "channels": channels, "size": size or shared["size"]}
    return FolderConfig(**{**shared, **described, **changes})
