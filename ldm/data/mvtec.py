"""The layout of MVTec AD: normal images to train on, images with and without defects to test on, masks of the defects.

    ROOT/train/good/000.png  ROOT/test/good/000.png  ROOT/test/scratch/000.png  ROOT/ground_truth/scratch/000_mask.png

The folders of `test` are called after what is wrong with their images. Masks are black where nothing is.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.data.config import DataConfig, FolderConfig, MVTecConfig
from ldm.data.datasets import Dataset
from ldm.data.decoding import UnreadableImage, center_crop, decode, fitted
from ldm.data.layouts.file_tree import is_image
from ldm.data.layouts.folder import FolderTree
from ldm.data.sources import folder
from ldm.errors import DataError

GOOD = "good"
ENDING = "_mask"


def mvtec(config: MVTecConfig) -> Dataset:
    """The normal images; what lies in `test` is never trained on."""
    if not is_mvtec(config.path):
        raise DataError(f"data.path {config.path} has no folder train/{GOOD}, as MVTec's layout has it")
    return _images(config, f"train/{GOOD}", labels="none")


def is_mvtec(path: str) -> bool:
    """Whether a folder is in this layout."""
    return (Path(path).expanduser() / "train" / GOOD).is_dir()


def mvtec_test_images(config: MVTecConfig) -> Dataset:
    """The images of `test`; their classes are its folders, of which `good` is the normal one."""
    return _images(config, "test", labels="folder")


def _images(config: MVTecConfig, part: str, *, labels: str) -> Dataset:
    """All images of a folder, by their paths from the root on."""
    shared = {each.name: getattr(config, each.name) for each in fields(DataConfig)}
    place = {"path": f"{Path(config.path).expanduser() / part}", "split": "none", "held_out_split": "none"}
    found = folder(FolderConfig(**{**shared, **place, "pixel_limit": config.pixel_limit, "labels": labels}))
    names = [f"{part}/{name}" for name in found.names]
    return replace(found, config=config, names=names, groups=[f"{part}/{group}" for group in found.groups])


def find_masks(root: str, names: Sequence[str]) -> list[Path | None] | None:
    """The file with the mask of each image of `test`; a good one needs none. None where there is no `ground_truth`.

    Raises DataError for an image without its mask, and for a mask without its image.
    """
    folder = Path(root).expanduser() / "ground_truth"
    if not folder.is_dir():
        return None
    masks = {_without_ending(name).removesuffix(ENDING): name for name in FolderTree(folder).names if is_image(name)}
    found: list[Path | None] = []
    for name in names:
        inside = name.removeprefix("test/")
        mask = masks.pop(_without_ending(inside), None)
        if mask is None and not inside.startswith(f"{GOOD}/"):
            raise DataError(f"{folder} has no mask of {name}: {_without_ending(inside)}{ENDING}.png is missing")
        found.append(None if mask is None else folder / mask)
    if masks:
        (stem, mask), *others = masks.items()
        more = f", and {len(others)} more" if others else ""
        raise DataError(f"{folder / mask} is the mask of no image: test holds no {stem}{more}")
    return found


def _without_ending(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def read_mask(file: Path | None, image: tuple[int, int], config: MVTecConfig) -> Tensor:
    """The mask of an image of height and width `image`, [1, height, width] as the image is seen: true in the defect.

    A mask of any size is laid over the whole image; it is brought to the size of the scaled image by nearest neighbors,
    and cropped as the image is. None is a mask without any defect.
    """
    if file is None:
        return torch.zeros(1, *config.sides, dtype=torch.bool)
    as_stored = DataConfig(channels=1, depth="uint16", background=(0, 0, 0))
    try:
        inside = decode(file, as_stored, pixel_limit=config.pixel_limit)[0] > 0
    except UnreadableImage as error:
        raise DataError(f"the mask {error} cannot be read") from error
    height, width = fitted(*image, sides=config.sides, resize=config.resize)
    scaled = Image.fromarray(inside).resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy(center_crop(np.array(scaled)[None], config.sides).copy())
