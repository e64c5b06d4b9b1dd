"""The tensors that travel between the floors, by name."""

from typing import Annotated, TypeAlias

import torch
from torch import Tensor

Images: TypeAlias = Annotated[Tensor, "float, batch channels height width, in [-1, 1]"]
Latents: TypeAlias = Annotated[Tensor, "float, batch channels height width, zero mean and unit variance per channel"]
NoiseLevels: TypeAlias = Annotated[Tensor, "float, batch: one standard deviation of the noise per sample"]
Labels: TypeAlias = Annotated[Tensor, "int64, batch: a class index, or the number of classes for 'no label'"]
Scalars: TypeAlias = Annotated[Tensor, "float, batch: one number per sample"]


def full_precision(x: Tensor) -> Tensor:
    """float32, or float64 where x already is: losses and preconditioning are never computed in half precision."""
    return x if x.dtype.itemsize >= 4 else x.float()


def to_float(images: Tensor) -> Images:
    """uint8 0..255 to the default float type in [-1, 1]."""
    return images.to(torch.get_default_dtype()) / 127.5 - 1


def to_uint8(images: Images) -> Tensor:
    """[-1, 1] to uint8, clipped and rounded to the nearest level, never truncated."""
    return ((images.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
