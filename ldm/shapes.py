"""Type aliases for tensors (images, latents, ...), and conversions of range and bit depth."""

from typing import Annotated, TypeAlias

import torch
from torch import Tensor

Images: TypeAlias = Annotated[Tensor, "float, batch channels height width, in [-1, 1]"]
Latents: TypeAlias = Annotated[Tensor, "float, batch channels height width, zero mean and unit variance per channel"]
NoiseLevels: TypeAlias = Annotated[Tensor, "float, batch: one standard deviation of the noise per sample"]
Labels: TypeAlias = Annotated[Tensor, "int64, batch: a class index"]
Scalars: TypeAlias = Annotated[Tensor, "float, batch: one number per sample"]


def full_precision(x: Tensor) -> Tensor:
    """float32, or float64 where x already is: losses and preconditioning are never computed in half precision."""
    return x if x.dtype.itemsize >= 4 else x.float()


def to_float(images: Tensor) -> Images:
    """uint8 or uint16, from 0 to their largest, to the default float type in [-1, 1]; floats are there already."""
    if images.is_floating_point():
        return images.to(torch.get_default_dtype())
    return images.to(torch.get_default_dtype()).div_(torch.iinfo(images.dtype).max / 2).sub_(1)  # of one new tensor


def to_depth(images: Images, depth: str) -> Tensor:
    """[-1, 1] to uint8, uint16 or float32, clipped; to integers rounded to the nearest level, never truncated."""
    dtype: torch.dtype = getattr(torch, depth)
    if dtype.is_floating_point:
        return images.to(dtype).clamp(-1, 1)
    highest = torch.iinfo(dtype).max
    return ((images.float() + 1) * (highest / 2)).clamp(0, highest).round().to(dtype)


def to_uint8(images: Images) -> Tensor:
    """[-1, 1] to the 256 levels of a picture, as `to_depth` has it."""
    return to_depth(images, "uint8")


def rounded(images: Images) -> Images:
    """Images as they would be stored: clipped and rounded to 8 bits, and in [-1, 1] again."""
    return to_float(to_uint8(images))


def format_size(sides: tuple[int, ...]) -> str:
    """Height and width as a person writes data.size: one number for a square."""
    return str(sides[0]) if len(set(sides)) == 1 else str(list(sides))
