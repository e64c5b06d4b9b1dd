"""Small images with and without planted defects, in the layout of MVTec AD."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16


def textured(rng: np.random.Generator) -> np.ndarray:
    """A gray texture: stripes of a random phase with a little noise."""
    columns = np.arange(SIDE) + rng.integers(0, SIDE)
    stripes = 128 + 40 * np.sin(columns * np.pi / 4) + rng.normal(0, 4, (SIDE, SIDE))
    return stripes.clip(0, 255).astype(np.uint8)


def scratched(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A texture with a bright patch, and the mask of the patch."""
    pixels, mask = textured(rng), np.zeros((SIDE, SIDE), np.uint8)
    top, left = rng.integers(1, SIDE - 6, 2)
    mask[top : top + 4, left : left + 5] = 255
    return np.where(mask > 0, 250, pixels).astype(np.uint8), mask


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def pixels_of(file: Path) -> np.ndarray:
    """The pixels of a picture."""
    with Image.open(file) as image:
        return np.array(image)


def mvtec_folder(root: Path, *, train: int = 30, good: int = 6, scratch: int = 6) -> Path:
    """So many normal images to train on and to test on, and so many with a defect and its mask."""
    rng = np.random.default_rng(0)
    for number in range(train):
        save(textured(rng), root / "train" / "good" / f"{number:03d}.png")
    for number in range(good):
        save(textured(rng), root / "test" / "good" / f"{number:03d}.png")
    for number in range(scratch):
        pixels, mask = scratched(rng)
        save(pixels, root / "test" / "scratch" / f"{number:03d}.png")
        save(mask, root / "ground_truth" / "scratch" / f"{number:03d}_mask.png")
    return root
