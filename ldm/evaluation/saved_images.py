"""Images and their reconstructions as PNG files, for other tools to measure."""

import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from ldm.data.datasets import Subset
from ldm.data.decoding import EXTENSIONS
from ldm.errors import CheckpointError, ConfigError
from ldm.pictures import MODES, picture, save_png
from ldm.training.processes import Processes

PARTS = ("images", "reconstructions")
LONGEST_NAME = 200  # bytes of UTF-8; file systems take 255, with the ending


class SavedImages:
    """A new folder with `images/NAME.png` and `reconstructions/NAME.png`, of 8 bits, as they are measured.

    Several processes write to it. Until it is complete it is called `FOLDER.partial`.
    """

    def __init__(self, folder: Path, images: Subset):
        if images.shape[0] not in MODES:
            channels = f"and these images have {images.shape[0]}"
            raise ConfigError(
                f"--save-images writes PNG files, of 1 to {max(MODES)} channels, {channels}: leave it out"
            )
        self.folder = folder.resolve()
        self.partial = self.folder.with_name(f"{self.folder.name}.partial")
        names = [images.dataset.names[index] for index in images.indices]
        self.names = dict(zip(images.indices, file_names(names), strict=True))

    @contextmanager
    def open(self, processes: Processes) -> Iterator[None]:
        """Begin the folder, and complete it in the end; on an error nothing is left."""
        processes.on_main(self._begin)
        try:
            yield
            processes.on_main(self._end)
        except BaseException:
            if processes.is_main:
                shutil.rmtree(self.partial, ignore_errors=True)
            raise

    def write(self, indices: Sequence[int], images: Tensor, reconstructions: Tensor) -> None:
        """Save uint8 images of the data set, by index, and their reconstructions."""
        with self._naming_folder():
            for index, *pair in zip(indices, images, reconstructions, strict=True):
                for part, pixels in zip(PARTS, pair, strict=True):
                    save_png(picture(pixels), self.partial / part / f"{self.names[index]}.png")

    def _begin(self) -> None:
        with self._naming_folder():
            shutil.rmtree(self.partial, ignore_errors=True)  # what an interrupted attempt left
            for part in PARTS:
                (self.partial / part).mkdir(parents=True)

    def _end(self) -> None:
        with self._naming_folder():
            with suppress(FileNotFoundError):
                self.folder.rmdir()  # fails if something has come to lie there; Windows renames onto no empty folder
            os.rename(self.partial, self.folder)

    @contextmanager
    def _naming_folder(self) -> Iterator[None]:
        """Errors name the folder that a person asked for."""
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"could not write {self.folder}: {error.strerror or error}") from error


def file_names(names: Sequence[str]) -> list[str]:
    """A file name without ending for each path: in one folder, fit for any file system, and all different.

    Sub-folders become a part of the name, and what is neither a letter nor a digit an underscore. Names that fall
    together, on some systems also those that differ in case alone, are numbered in their order.
    """
    found, taken, count = [], set(), Counter[str]()
    for name in names:
        bare = name.rpartition(".")[0] if name.lower().endswith(EXTENSIONS) else name
        stem = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", bare).replace("/", "-"))
        stem = stem.encode()[-LONGEST_NAME:].decode(errors="ignore").strip(".-") or "image"
        unique = stem
        while unicodedata.normalize("NFKC", unique).casefold() in taken:
            count[stem] += 1
            unique = f"{stem}-{count[stem] + 1}"
        taken.add(unicodedata.normalize("NFKC", unique).casefold())
        found.append(unique)
    return found
