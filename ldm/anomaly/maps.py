"""Anomaly maps: components of a score at their own resolutions, as one smoothed map of the image's size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from ldm.shapes import Scalars

TOP = 0.01  # share of a map whose mean is its score where it is pooled by `top`


def is_spatial(component: Tensor) -> bool:
    """Whether a component, batch x h x w, says where in the image it is high."""
    return math.prod(component.shape[1:]) > 1


def weighted_map(
    components: Sequence[Tensor], weights: Sequence[float], sides: tuple[int, int], smoothing: float
) -> Tensor | None:
    """The weighted sum of the components at the image's size, batch x 1 x H x W; None if none of them is spatial.

    A component of another size is scaled bilinearly; what is of no place counts everywhere. `smoothing` is σ in pixels.
    """
    if not any(is_spatial(component) for component in components):
        return None
    scaled = [
        weight * component[:, None]
        if tuple(component.shape[1:]) in (sides, (1, 1))
        else weight * F.interpolate(component[:, None], size=sides, mode="bilinear", align_corners=False)
        for weight, component in zip(weights, components, strict=True)
    ]
    total = torch.stack([each.expand(-1, 1, *sides) for each in scaled]).sum(0)
    return smoothed(total, smoothing)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """The maps under a Gaussian blur, reflected at the borders; σ = 0 leaves them alone."""
    if sigma == 0:
        return maps
    kernel = [2 * min(math.ceil(3 * sigma), side - 1) + 1 for side in reversed(maps.shape[-2:])]
    return gaussian_blur(maps, kernel, [sigma, sigma])


def component_means(components: Sequence[Tensor]) -> Tensor:
    """The mean of each component over each image, batch x components, in float64 on the CPU."""
    return torch.stack([component.flatten(1).cpu().double().mean(1) for component in components], 1)


def pooled(maps: Tensor, pool: str) -> Scalars:
    """One number per image of maps batch x 1 x H x W, in float64 on the CPU: their highest value, or `top`."""
    values = maps.flatten(1).cpu().double()
    count = 1 if pool == "max" else max(round(TOP * values.shape[1]), 1)
    # topk has no place for NaN: what is not a number comes first, so that it is not lost.
    highest = torch.where(values.isnan(), torch.inf, values).topk(count, dim=1).values.mean(1)
    return torch.where(values.isfinite().all(1), highest, torch.nan)
