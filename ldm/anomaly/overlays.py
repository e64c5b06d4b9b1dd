"""Overlays: anomaly maps laid over their images, and the sheet of the most anomalous and the most normal images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

STRENGTH = 0.75  # of the color where it is fullest: the image shows through
YELLOW, RED, OUTLINE = (255.0, 224.0, 64.0), (220.0, 0.0, 32.0), (0.0, 160.0, 255.0)


@dataclass(frozen=True)
class HeatScale:
    """Which values of a map are colored how; the same for all images, so that normal ones stay without color."""

    start: float  # uncolored up to here
    threshold: float  # what is above is outlined

    @classmethod
    def of_peaks(cls, peaks: Tensor, threshold: float) -> Self:
        """The scale from the highest places of the maps of normal images: in half of these nothing is colored."""
        return cls(float(peaks.double().median()), threshold)

    def level(self, maps: Tensor) -> Tensor:
        """From 0, uncolored, to 1, which is never reached but by what is no number: a third at the threshold.

        With u = (value - start) / (threshold - start) it is u / (u + 2): defects of any strength keep their shades.
        """
        above = (maps.double() - self.start) / max(self.threshold - self.start, 1e-12)
        above = above.clamp_min(0)
        return (above / (above + 2)).nan_to_num(1.0)


def overlay(image: Tensor, anomaly_map: Tensor, scale: HeatScale) -> Tensor:
    """An image, uint8 [channels, height, width], in RGB with its map [1, height, width] in color on it.

    The color goes from yellow to red; what is above the threshold is outlined in blue.
    """
    level = scale.level(anomaly_map)
    colors = torch.tensor([YELLOW, RED], dtype=torch.float64)[:, :, None, None]
    color = torch.lerp(colors[0], colors[1], level)
    shown = torch.lerp(rgb(image).double(), color, STRENGTH * level)
    outlined = torch.where(outline(anomaly_map > scale.threshold), torch.tensor(OUTLINE)[:, None, None], shown)
    return outlined.round().clamp(0, 255).to(torch.uint8)


def outline(mask: Tensor) -> Tensor:
    """The places of a mask [1, height, width] with a neighbor, also across a corner, that is not of it."""
    outside = max_pool2d((~mask)[None].float(), 3, stride=1, padding=1)[0] > 0
    return mask & outside


def rgb(image: Tensor) -> Tensor:
    """A uint8 image in red, green and blue: gray three times over, or the first three channels; alpha is left out."""
    return image[:3] if len(image) > 2 else image[:1].expand(3, -1, -1)


def ends(scores: Sequence[float], count: int) -> tuple[list[int], list[int]]:
    """The places of the `count` highest scores, highest first, and of the lowest, lowest first; none is in both."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    highest = order[: min(count, -(-len(order) // 2))]
    return highest, order[len(highest) :][::-1][:count]
