"""Images and their reconstructions as PNG files, for other tools to measure."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm.data.datasets import Subset
from ldm.data.decoding import EXTENSIONS
from ldm.errors import ConfigError
from ldm.evaluation.new_folder import NewFolder
from ldm.pictures import MODES, picture, save_png

PARTS = ("images", "reconstructions")
LONGEST_NAME = 200  # bytes of UTF-8; file systems take 255, with the ending


class SavedImages(NewFolder):
    """A new folder with `images/NAME.png` and `reconstructions/NAME.png`, of 8 bits, as they are measured."""

    def __init__(self, folder: Path, images: Subset):
        if images.shape[0] not in MODES:
            channels = f"and these images have {images.shape[0]}"
            raise ConfigError(
                f"--save-images writes PNG files, of 1 to {max(MODES)} channels, {channels}: leave it out"
            )
        super().__init__(folder, PARTS)
        names = [images.dataset.names[index] for index in images.indices]
        self.names = dict(zip(images.indices, file_names(names), strict=True))

    def write(self, indices: Sequence[int], images: Tensor, reconstructions: Tensor) -> None:
        """Save uint8 images of the data set, by index, and their reconstructions."""
        with self.named_in_errors():
            for index, *pair in zip(indices, images, reconstructions, strict=True):
                for part, pixels in zip(PARTS, pair, strict=True):
                    save_png(picture(pixels), self.partial / part / f"{self.names[index]}.png")


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
