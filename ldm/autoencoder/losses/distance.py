"""Distances between an image and its reconstruction, value by value, and normalized patches as their target (MAE)."""

import math

from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional as F

from ldm.shapes import Images

EPSILON = 1e-6  # added to the variance of a patch, and to the mean square of a difference
HUBER_DELTA = 0.1  # of the Huber distance, where images are in [-1, 1]


def l1(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """Absolute difference."""
    return (images - reconstruction).abs()


def mse(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """Squared difference."""
    return (images - reconstruction).square()


def rmse(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """(d² / r + r) / 2 of the difference d, with r the root of the mean of d² over the image.

    Its mean over an image is r, and so is its gradient that of r: an image that is nearly right counts as much as one
    that is not, as in the mean PSNR.
    """
    squared = (images - reconstruction).square()
    root = (squared.detach().flatten(1).mean(1) + EPSILON).sqrt().view(-1, *[1] * (squared.ndim - 1))
    return 0.5 * (squared / root + root)


def huber(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """d - 0.05 where the absolute difference d is above 0.1, and d² / 0.2 below."""
    return F.smooth_l1_loss(reconstruction, images, beta=HUBER_DELTA, reduction="none")


def gaussian(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """Negative log likelihood in nats of each value of the image around its reconstruction.

    `logvar` (channels x 1 x 1) is the log of the variance and is learned (Rybkin et al. 2021); with a KL weight of 1
    the whole objective is then the negative evidence lower bound per image value.
    """
    squared = (images - reconstruction).square() / logvar.exp()
    return 0.5 * (squared + logvar + math.log(2 * math.pi))


def emphasized(distance: Tensor, elements: Tensor | None, emphasis: float | None) -> Tensor:
    """The mean of a distance in which elements that were corrupted weigh `emphasis`, and the others the rest.

    Vincent et al. 2010, equation 16, over the sum of an image's weights: 1 looks at corrupted elements alone. Without
    an emphasis, and where everything was corrupted, all weigh the same.
    """
    if elements is None or emphasis is None:
        return distance.mean()
    weight = elements.to(distance.dtype) * (2 * emphasis - 1) + (1 - emphasis)
    weight = weight.expand_as(distance).flatten(1)
    return ((weight * distance.flatten(1)).sum(1) / weight.sum(1).clamp_min(1e-12)).mean()


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
