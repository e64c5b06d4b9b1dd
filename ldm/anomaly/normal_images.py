"""The normal images of a detector: how they were read, so that others are read alike, and hashes of what they hold.

By these an evaluation leaves out the images that the detector was made with: they are what it knows best.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ldm.checkpoint import read_json
from ldm.config.reader import to_plain
from ldm.data.config import DataConfig
from ldm.errors import CheckpointError

FILE = "normal_images.json"
READING = ("size", "channels", "depth", "value_range", "resize", "background")  # all that shapes an image


@dataclass(frozen=True)
class NormalImages:
    """What is remembered of them."""

    reading: dict[str, Any]  # settings of a DataConfig
    hashes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: DataConfig, hashes: Iterable[str]) -> Self:
        """Those of a data set that is read so, from the hash of each."""
        return cls({name: getattr(config, name) for name in READING}, frozenset(hashes))

    def save(self, folder: Path) -> None:
        """Write it beside a detector."""
        reading = {name: to_plain(value) for name, value in self.reading.items()}
        (folder / FILE).write_text(json.dumps({"reading": reading, "hashes": sorted(self.hashes)}, indent=1))

    @classmethod
    def load(cls, folder: Path, shape: tuple[int, int, int]) -> Self:
        """What `save` wrote; of a detector that was saved without, images of this shape, read by default."""
        if not (folder / FILE).is_file():
            return cls({"channels": shape[0], "size": shape[1:]})
        try:
            found = read_json(folder / FILE)
            reading = {name: _as_setting(found["reading"][name]) for name in READING}
            return cls(reading, frozenset(found["hashes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / FILE} is damaged: fit the detector again") from error


def hash_of(view: Tensor) -> str:
    """A hash of an image in its evaluation view: of its pixels, their type and their shape."""
    pixels = view.contiguous().numpy()
    return hashlib.sha256(f"{pixels.dtype} {pixels.shape} ".encode() + pixels.tobytes()).hexdigest()[:32]


def _as_setting(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
