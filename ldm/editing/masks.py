"""Masks of inpainting: which latents a hidden part of an image touches, and how the new part is put into the image.

`hidden` is a boolean of batch x 1 x height x width, true where an image is to be drawn anew.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ldm.errors import RequestError
from ldm.shapes import Images

SPREADING = 64  # how often values spread by one pixel into a hole


def check_hidden(hidden: Tensor, images: Images) -> None:
    """Raise RequestError for a mask that hides nothing, or that is of another size than its images."""
    if hidden.ndim != 4 or hidden.shape[1] != 1 or hidden.shape[-2:] != images.shape[-2:]:
        sizes = [" x ".join(map(str, each.shape[-2:])) for each in (hidden, images)]
        raise RequestError("mask", f"of {sizes[0]} is not of the size of its image, {sizes[1]}")
    if not hidden.flatten(1).any(1).all():
        raise RequestError("mask", "hides nothing: what is to be drawn anew is white in it")


def hidden_latents(hidden: Tensor, downsampling: tuple[int, int]) -> Tensor:
    """The latents of which any pixel is hidden."""
    return functional.max_pool2d(hidden.float(), downsampling, ceil_mode=True) > 0


def spread(values: Tensor, known: Tensor, start: Tensor) -> Tensor:
    """The known values, and between them a smooth surface that grows from `start` toward the values at its border.

    It is the way of Jacobi's method to the membrane that Laplace's equation describes, left early: what is far from the
    border keeps the start.
    """
    surface = torch.where(known, values, start)
    for _ in range(SPREADING):
        neighbors = functional.avg_pool2d(functional.pad(surface, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        surface = torch.where(known, values, neighbors)
    return surface


def without_hidden(images: Images, hidden: Tensor) -> Images:
    """The images with a smooth surface where they are hidden, so that the encoder sees nothing of what is to go."""
    known = ~hidden
    count = known.float().sum((2, 3), keepdim=True).clamp_min(1)
    mean = (images * known).sum((2, 3), keepdim=True) / count
    return spread(images, known, mean.expand_as(images))


def put_into(images: Images, drawn: Images, hidden: Tensor) -> Images:
    """The images, to the bit, with what was drawn in their hidden part.

    There the difference between an image and its reconstruction at the border of the mask fades out inward, so that
    no seam shows the autoencoder's error (a membrane as of Pérez et al. 2003, Poisson image editing).
    """
    correction = spread(images - drawn, ~hidden, torch.zeros_like(images))
    return torch.where(hidden, (drawn + correction).clamp(-1, 1), images)
