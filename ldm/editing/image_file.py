"""Files of real images and of masks, read for a model as its training images were."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.data.config import DataConfig
from ldm.data.decoding import UnreadableImage, center_crop, decode, fit
from ldm.errors import ConfigError, DataError
from ldm.shapes import Images, to_float

PIXEL_LIMIT = 100_000_000
HALF = 128  # from here on a mask is white


def read_image(file: str | Path, flag: str, config: DataConfig) -> Images:
    """An image of the channels and the size of `config`, scaled and cropped to it: 1 x channels x height x width.

    Raises DataError for a file that cannot be read, ConfigError for colors where the model draws in gray.
    """
    image = decoded(file, flag, config if config.channels > 2 else replace(config, channels=config.channels + 2))
    if config.channels < 3:
        color = image[:3].astype(int)
        if abs(color - color[:1]).max() > 1:
            channels = "gray" if config.channels == 1 else "gray and alpha"
            raise ConfigError(f"{flag} {file} has colors, and this model draws {channels}: convert it to gray")
        image = np.concatenate([image[:1], image[3:]])
    return to_float(torch.from_numpy(cut(image, config))[None])


def read_mask(file: str | Path, flag: str, image_file: str | Path, config: DataConfig) -> Tensor:
    """A mask for the image in another file, true where it is white, scaled and cropped as the image is.

    Raises DataError for a file that cannot be read, ConfigError for one of another size than the image.
    """
    gray = replace(config, channels=1, depth="uint8", background=(0, 0, 0))
    mask = decoded(file, flag, gray)
    image = decoded(image_file, flag, config if config.channels > 2 else gray)
    if mask.shape[1:] != image.shape[1:]:
        sizes = [f"{each.shape[2]} x {each.shape[1]}" for each in (mask, image)]
        raise ConfigError(f"{flag} {file} of {sizes[0]} is not of the size of {image_file}, {sizes[1]}")
    hidden = torch.from_numpy(cut(np.where(mask >= HALF, 255, 0).astype(np.uint8), config))[None] >= HALF
    if not hidden.any():
        raise ConfigError(f"{flag} {file} hides nothing: what is to be drawn anew is white in it")
    return hidden


def decoded(file: str | Path, flag: str, config: DataConfig) -> np.ndarray:
    """The pixels of a file, or DataError."""
    try:
        return decode(file, config, pixel_limit=PIXEL_LIMIT)
    except UnreadableImage as error:
        raise DataError(f"{flag} {error.path} cannot be read: {error.reason}") from error


def cut(image: np.ndarray, config: DataConfig) -> np.ndarray:
    """The image scaled until it just covers the size, and the middle of it."""
    return center_crop(fit(image, config.sides, resize=config.resize), config.sides)
