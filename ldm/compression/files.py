"""Files and folders on the command line: which images or compressed files are meant, and where results go."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.compression.container import PIXEL_LIMIT
from ldm.data.config import DataConfig
from ldm.data.decoding import EXTENSIONS, UnreadableImage, decode
from ldm.errors import ConfigError, DataError
from ldm.pictures import MODES
from ldm.shapes import to_float

ENDING = ".ldmc"
LARGEST_FILE = 2**30  # bytes


@dataclass(frozen=True)
class Job:
    """A file that is read, and the file that is made of it."""

    source: Path
    target: Path


def jobs_of(given: Sequence[Path], out: Path, *, compresses: bool) -> list[Job]:
    """What is made of these files and folders in the folder `out`; ConfigError if there is nothing, or it exists."""
    found = sources_of(given, compresses=compresses)
    names = target_names([name for _, name in found], ENDING if compresses else ".png")
    jobs = [Job(source, out / name) for (source, _), name in zip(found, names, strict=True)]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file: name a folder")
    for job in jobs:
        if job.target.exists():
            raise ConfigError(f"--out {out} holds {job.target.name} already: choose another folder")
    return jobs


def sources_of(given: Sequence[Path], *, compresses: bool) -> list[tuple[Path, Path]]:
    """These files and those of these folders, each with its path in its folder; ConfigError if there is nothing."""
    endings = EXTENSIONS if compresses else (ENDING,)
    found: list[tuple[Path, Path]] = []
    for path in given:
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
        inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in endings) if path.is_dir() else []
        if path.is_dir() and not inside:
            raise ConfigError(f"{path} holds no {'image' if compresses else f'{ENDING} file'}")
        found += [(each, each.relative_to(path)) for each in inside] or [(path, Path(path.name))]
    return found


def target_names(names: Sequence[Path], ending: str) -> list[str]:
    """Each name with another ending, or, where two would be one, with both; ConfigError if they still are."""
    short = [name.with_suffix(ending).as_posix() for name in names]
    several = {name for name, times in Counter(short).items() if times > 1}
    found = [f"{name}{ending}" if new in several else new for name, new in zip(names, short, strict=True)]
    if twice := [name for name, times in Counter(found).items() if times > 1]:
        raise ConfigError(f"two files would both become {twice[0]}: give them in two commands")
    return found


def read_image(path: Path, channels: int) -> Tensor:
    """An image at its own size, channels x height x width in [-1, 1]; DataError if it has others, or none at all.

    Gray is taken for RGB, and what is transparent lies on white where the codec has no alpha; color is never dropped.
    """
    config = DataConfig(channels=3 if channels == 1 else channels)
    try:
        pixels = decode(path, config, pixel_limit=PIXEL_LIMIT)
    except UnreadableImage as error:
        raise DataError(f"{path} cannot be read as an image of {channels} channels: {error.reason}") from error
    if channels == 1:
        if not (pixels == pixels[:1]).all():
            raise DataError(f"{path} is in color, of 3 channels, and the codec takes 1: convert it to gray")
        pixels = pixels[:1]
    return to_float(torch.from_numpy(np.ascontiguousarray(pixels)))


def read_file(path: Path) -> bytes:
    """A compressed file; DataError if it cannot be read, or is larger than any that is written."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"{path} is larger than {LARGEST_FILE:,} bytes, and so no compressed image")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def check_writes_pictures(channels: int) -> None:
    """Raise ConfigError for images of more channels than a PNG has."""
    if channels not in MODES:
        raise ConfigError(f"images of {channels} channels fit no PNG: use ldm.Codec.decompress")
