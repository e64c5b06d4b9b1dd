"""Normalized patches as a target, each with mean 0 and variance 1: structure, not brightness (He et al. 2022)."""

from einops import rearrange, reduce
from torch import Tensor

from ldm.shapes import Images

EPSILON = 1e-6  # added to the variance


def patch_statistics(images: Images, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch over its channels and pixels: batch x 1 x H x W, one for each pixel."""
    p, q = patch
    mean = reduce(images, "b c (h p) (w q) -> b 1 h w", "mean", p=p, q=q)
    values = rearrange(images, "b c (h p) (w q) -> b 1 h w (c p q)", p=p, q=q)
    std = (values.var(-1) + EPSILON).sqrt()
    mean, std = (each.repeat_interleave(p, 2).repeat_interleave(q, 3) for each in (mean, std))
    return mean, std


def normalized_patches(images: Images, patch: tuple[int, int]) -> Images:
    """The images with mean 0 and variance 1 in every patch."""
    mean, std = patch_statistics(images, patch)
    return (images - mean) / std
