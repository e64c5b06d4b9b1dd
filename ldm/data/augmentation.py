"""Augmentation of training images, a batch at a time; what is drawn depends on (seed, epoch, image) alone.

Images are cropped, mirrored and turned at their depth, where every device has the same bits, and zoomed and toned as
floats.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.data.config import AugmentConfig, DataConfig
from ldm.randomness import uniform_at
from ldm.shapes import Images


class Draws(NamedTuple):
    """Numbers in [0, 1), one per image, used or not, in the order in which they are drawn; a new one goes last."""

    top: Tensor  # where a random crop is cut
    left: Tensor
    flip: Tensor
    turn: Tensor
    flip_vertical: Tensor
    zoom: Tensor
    zoom_top: Tensor  # where the part lies that is enlarged
    zoom_left: Tensor
    brightness: Tensor
    contrast: Tensor


def draws(seed: int, epochs: Tensor, indices: Tensor) -> Draws:
    """What is drawn for each of these images in its epoch; no setting changes what another one draws."""
    numbers = uniform_at(seed, "augmentation", indices, epochs, len(Draws._fields))
    return Draws(*numbers.T.contiguous().unbind())


def flips(seed: int, epochs: Tensor, indices: Tensor) -> Tensor:
    """Which of these images are mirrored left to right in their epoch: `draws(...).flip < 0.5` without the rest."""
    place = Draws._fields.index("flip")
    return uniform_at(seed, "augmentation", indices, epochs, place + 1)[:, place] < 0.5


def chosen(share: Tensor, count: Tensor | int) -> Tensor:
    """One of `count` whole numbers from 0 on, for each share in [0, 1)."""
    return (share * count).long().clamp(max=count - 1)  # type: ignore[type-var]  # rounding may reach count itself


def cropped(pixels: Tensor, drawn: Draws, sides: tuple[int, int]) -> Tensor:
    """Of each image the rectangle of these sides that was drawn."""
    (height, width), images = sides, torch.arange(len(pixels), device=pixels.device)
    top, left = crop_corner(drawn, pixels.shape[-2:], sides)
    rows = top[:, None] + torch.arange(height, device=pixels.device)
    columns = left[:, None] + torch.arange(width, device=pixels.device)
    found = pixels.movedim(1, -1)[images[:, None, None], rows[:, :, None], columns[:, None, :]]
    return found.movedim(-1, 1).contiguous()


def crop_corner(drawn: Draws, size: Sequence[Tensor | int], sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column where the rectangle begins that is cut from images of this size, or of one each."""
    return chosen(drawn.top, size[0] - sides[0] + 1), chosen(drawn.left, size[1] - sides[1] + 1)


def mirrored_and_turned(pixels: Tensor, drawn: Draws, config: DataConfig) -> Tensor:
    """Each image mirrored left to right, rotated by quarter turns, and mirrored top to bottom, as far as wanted."""
    augment = config.augment or AugmentConfig()
    never = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    columns, rows, square = drawn.flip < 0.5 if config.flip else never, never, pixels.shape[-1] == pixels.shape[-2]
    if augment.rotate90:
        quarters = (4 * drawn.turn).long() if square else 2 * (2 * drawn.turn).long()
        if square:
            transposed = quarters % 2 == 1
            pixels = torch.where(_each(transposed), pixels.mT, pixels)
            # What was to be mirrored left to right lies on its side now.
            columns, rows = columns & ~transposed, columns & transposed
        rows, columns = rows ^ (quarters % 3 != 0), columns ^ (quarters >= 2)
    if augment.flip_vertical:
        rows = rows ^ (drawn.flip_vertical < 0.5)
    if augment.rotate90 or augment.flip_vertical:
        pixels = torch.where(_each(rows), pixels.flip(-2), pixels)
    if augment.rotate90 or config.flip:
        pixels = torch.where(_each(columns), pixels.flip(-1), pixels)
    return pixels


def zoomed_and_toned(images: Images, drawn: Draws, augment: AugmentConfig) -> Images:
    """Each image enlarged and changed in brightness and contrast, in that order.

    Zoom is bicubic and log-uniform from 1 to `augment.zoom`. Brightness adds and contrast multiplies; both leave the
    alpha of two and four channels alone. What leaves [-1, 1] is clipped.
    """
    if augment.zoom > 1:
        factor = augment.zoom**drawn.zoom
        taller = _stretched(images, factor, drawn.zoom_top)
        images = _stretched(taller.mT.contiguous(), factor, drawn.zoom_left).mT.contiguous().clamp(-1, 1)
    if augment.brightness or augment.contrast:
        colors = images.shape[1] - (images.shape[1] in (2, 4))
        change = _each(augment.contrast * (2 * drawn.contrast - 1))
        shift = _each(augment.brightness * (2 * drawn.brightness - 1))
        toned = (images[:, :colors] * (1 + change) + shift).clamp(-1, 1)
        images = toned if colors == images.shape[1] else torch.cat([toned, images[:, colors:]], 1)
    return images


def _stretched(images: Images, factor: Tensor, where: Tensor) -> Images:
    """A part of the rows of each image, as many times fewer as `factor` says, interpolated to all of its rows.

    Keys' cubic convolution with a = −1/2, as Pillow has it: rows outside of the part count for nothing.
    """
    count, channels, height, width = images.shape
    length = (height / factor).round().clamp(min=1)
    start = chosen(where, height - length.long() + 1)
    at = (torch.arange(height, device=images.device) + 0.5) * (length / height)[:, None] - 0.5
    taps = at.floor()[..., None] + torch.arange(-1, 3, device=images.device)
    inside = (taps >= 0) & (taps < length[:, None, None])
    distance = (at[..., None] - taps).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(inside, torch.where(distance < 1, near, far), 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    rows = start[:, None, None] + taps.long().clamp(min=0).minimum(length.long()[:, None, None] - 1)
    channel = torch.arange(count * channels, device=images.device).view(count, channels, 1) * height
    lines, total = images.reshape(-1, width), torch.zeros_like(images)
    gathered = torch.empty_like(lines)  # used four times: new memory costs more than what is written to it
    for tap in range(4):
        torch.index_select(lines, 0, (channel + rows[:, None, :, tap]).flatten(), out=gathered)
        total.addcmul_(gathered.view(images.shape), weights[:, None, :, tap, None].to(images.dtype))
    return total


def _each(values: Tensor) -> Tensor:
    """One value per image, to go with a batch of images."""
    return values.view(-1, 1, 1, 1)
