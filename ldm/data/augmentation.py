"""Augmentation of training images; what is drawn depends on (seed, epoch, image) alone."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.data.config import AugmentConfig
from ldm.randomness import derived_seed


class Draws(NamedTuple):
    """Numbers in [0, 1), whether used or not, in the order in which they are drawn: a new one goes to the end."""

    top: float  # where a random crop is cut
    left: float
    flip: float
    turn: float
    flip_vertical: float
    zoom: float
    zoom_top: float  # where the part lies that is enlarged
    zoom_left: float
    brightness: float
    contrast: float


def draws(seed: int, epoch: int, index: int) -> Draws:
    """What is drawn for one image in one epoch; no setting changes what another one draws."""
    numbers = np.random.default_rng(derived_seed(seed, "augmentation", epoch, index))
    return Draws(*numbers.random(len(Draws._fields)).tolist())


def augmented(image: Tensor, drawn: Draws, augment: AugmentConfig) -> Tensor:
    """The image, float [channels, height, width] in [-1, 1], rotated, mirrored, zoomed and toned, in that order.

    Zoom is bicubic and log-uniform from 1 to `augment.zoom`. Brightness adds and contrast multiplies; both leave the
    alpha of two and four channels alone. What leaves [-1, 1] is clipped.
    """
    if augment.rotate90:
        square = image.shape[-1] == image.shape[-2]
        image = torch.rot90(image, int(4 * drawn.turn) if square else 2 * int(2 * drawn.turn), (-2, -1))
    if augment.flip_vertical and drawn.flip_vertical < 0.5:
        image = image.flip(-2)
    if augment.zoom > 1:
        image = _zoomed(image, drawn, augment.zoom**drawn.zoom)
    if augment.brightness or augment.contrast:
        image = _toned(
            image, augment.brightness * (2 * drawn.brightness - 1), augment.contrast * (2 * drawn.contrast - 1)
        )
    return image


def _zoomed(image: Tensor, drawn: Draws, factor: float) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    sides = list(image.shape[-2:])
    height, width = (max(round(side / factor), 1) for side in sides)
    top = int(drawn.zoom_top * (sides[0] - height + 1))
    left = int(drawn.zoom_left * (sides[1] - width + 1))
    return resized_crop(image, top, left, height, width, sides, InterpolationMode.BICUBIC).clamp(-1, 1)


def _toned(image: Tensor, shift: float, change: float) -> Tensor:
    colors = len(image) - (len(image) in (2, 4))
    toned = (image[:colors] * (1 + change) + shift).clamp(-1, 1)
    return torch.cat([toned, image[colors:]])
