"""A folder as a tree of files, those of its sub-folders included."""

import os
import zlib
from pathlib import Path

import numpy as np

from ldm.data.config import FolderConfig
from ldm.data.decoding import decode
from ldm.data.layouts.file_tree import Exclusion
from ldm.errors import DataError


class FolderTree:
    """The files below a folder: hidden ones are passed over, links to folders followed, no folder entered twice."""

    is_archive = False
    packaging: str | None = ""

    def __init__(self, folder: Path, exclude: Exclusion | None = None):
        self.folder, self.place = folder, f"data.path {folder}"
        self.names = _walk(folder, exclude or Exclusion(()))

    def __contains__(self, name: str) -> bool:
        return os.path.isfile(self.folder / name)

    def read(self, name: str) -> bytes:
        """The content of a small file; DataError if it cannot be read."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.folder / name} cannot be read: {error.strerror}") from error

    def image(self, name: str, config: FolderConfig) -> np.ndarray:
        """The decoded image, or UnreadableImage."""
        return decode(self.folder / name, config, pixel_limit=config.pixel_limit)

    def checksum(self, name: str) -> list[int]:
        """Size in bytes and CRC-32 of the first 64 KiB; nothing for a file that cannot be read."""
        try:
            with open(self.folder / name, "rb") as file:
                return [os.fstat(file.fileno()).st_size, zlib.crc32(file.read(2**16))]
        except OSError:
            return []

    def size(self, name: str) -> list[int]:
        """Size in bytes; nothing for a file that cannot be looked at."""
        try:
            return [os.stat(self.folder / name).st_size]
        except OSError:
            return []


def _walk(folder: Path, exclude: Exclusion) -> list[str]:
    def fail(error: OSError) -> None:
        inner = Path(error.filename or folder)
        advice = ""
        if inner != folder:
            advice = f"; to leave it out: --data.exclude '[\"{inner.relative_to(folder).as_posix()}\"]'"
        raise DataError(f"{inner} cannot be read: {error.strerror}{advice}") from error

    def enters(path: str) -> bool:
        real = os.path.realpath(path)
        known = real in entered
        entered.add(real)
        return not known

    names, entered = [], {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        inside = os.path.relpath(parent, folder).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        shown = [name for name in sorted(folders) if name[0] != "." and prefix + name not in exclude]
        folders[:] = [name for name in shown if enters(os.path.join(parent, name))]
        names += [prefix + name for name in files if name[0] != "." and prefix + name not in exclude]
    return sorted(names)
