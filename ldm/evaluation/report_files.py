"""The files of metrics and the pictures that `ldm evaluate` writes: it replaces those, and nothing else."""

import json
from pathlib import Path

from ldm.errors import ConfigError

MARK = {"Software": "ldm evaluate"}  # in the text chunks of its pictures
KEYS = ({"protocol", "metrics"}, {"sweep", "rows"}, {"codec", "curves"})  # of what its files of metrics hold


def check_replaceable(flag: str, path: Path) -> None:
    """Raise ConfigError for a file that is there and is none of `ldm evaluate`'s, or that could not be written."""
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"{flag} {path} cannot be written: it is in no folder")
    if path.is_dir():
        raise ConfigError(f"{flag} {path} cannot be written: it is a folder")
    if path.is_file() and path.stat().st_size and not (is_own_picture(path) or is_own_report(path)):
        raise ConfigError(f"{flag} {path} is there, and was not written by ldm evaluate: choose another name")


def features_beside(panel: Path) -> Path:
    """Where what each unit of a code adds to the image is drawn, beside a panel."""
    return panel.with_name(f"features-{panel.name.removeprefix('step-')}")


def is_own_picture(path: Path) -> bool:
    """Whether that is a picture of `ldm evaluate`."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return MARK.items() <= picture.info.items()
    except Exception:  # of many types, where Pillow cannot read it
        return False


def is_own_report(path: Path) -> bool:
    """Whether that is a file of metrics of `ldm evaluate`."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and any(keys <= found.keys() for keys in KEYS)
