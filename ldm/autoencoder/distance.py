"""How far a reconstruction is from its image, pixel by pixel."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from ldm.shapes import Images

CORNER = 0.1  # of the Huber distance, where images are in [-1, 1]


def l1(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """Mean absolute difference per image value."""
    return (images - reconstruction).abs().mean()


def mse(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """Mean squared difference per image value."""
    return (images - reconstruction).square().mean()


def huber(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """Per image value, d - 0.05 where the absolute difference d is above 0.1, and d² / 0.2 below."""
    return F.smooth_l1_loss(reconstruction, images, beta=CORNER)


def gaussian(images: Images, reconstruction: Images, logvar: Tensor) -> Tensor:
    """Negative log likelihood, in nats per image value, of the image around its reconstruction.

    `logvar` (channels x 1 x 1) is the log of the variance and is learned (Rybkin et al. 2021); with a KL weight of 1
    the whole objective is then the negative evidence lower bound per image value.
    """
    squared = (images - reconstruction).square() / logvar.exp()
    return 0.5 * (squared + logvar + math.log(2 * math.pi)).mean()


DISTANCES: dict[str, Callable[[Images, Images, Tensor], Tensor]] = {
    "l1": l1,
    "mse": mse,
    "huber": huber,
    "gaussian": gaussian,
}
