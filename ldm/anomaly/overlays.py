"""Overlays: anomaly maps laid over their images in color, and the choice of the most anomalous and most normal ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

YELLOW, RED = (255.0, 208.0, 0.0), (230.0, 0.0, 38.0)  # below the threshold and above it
AT_THRESHOLD, MOST = 0.5, 0.8  # opacity of the color: the image shows through everywhere


@dataclass(frozen=True)
class HeatScale:
    """Which values of a map are colored how; the same for all images, so that normal ones stay nearly without color."""

    start: float  # uncolored up to here
    threshold: float  # red above it

    @classmethod
    def of_peaks(cls, peaks: Tensor, threshold: float) -> Self:
        """The scale from the highest places of the maps of normal images: in a tenth of these nothing is colored."""
        return cls(float(peaks.double().quantile(0.1)), threshold)

    def opacity(self, maps: Tensor) -> Tensor:
        """That of the color, from 0 at the start; beyond the threshold it hardly grows, so that no defect is flat."""
        above = (maps.double() - self.start) / max(self.threshold - self.start, 1e-12)
        above = above.nan_to_num(math.inf).clamp_min(0)
        return torch.where(above > 1, MOST - (MOST - AT_THRESHOLD) / above.clamp_min(1), AT_THRESHOLD * above)


def overlay(image: Tensor, anomaly_map: Tensor, scale: HeatScale) -> Tensor:
    """An image, uint8 [channels, height, width], in RGB with its map [1, height, width] in color on it.

    Yellow is higher than nearly every place of a normal image, and red above the threshold: pred_mask.
    """
    yellow, red = (torch.tensor(color, dtype=torch.float64)[:, None, None] for color in (YELLOW, RED))
    color = torch.where(anomaly_map <= scale.threshold, yellow, red)
    shown = torch.lerp(rgb(image).double(), color, scale.opacity(anomaly_map))
    return shown.round().to(torch.uint8)


def rgb(image: Tensor) -> Tensor:
    """A uint8 image in red, green and blue: gray three times over, or the first three channels; alpha is left out."""
    return image[:3] if len(image) > 2 else image[:1].expand(3, -1, -1)


def ends(scores: Sequence[float], count: int) -> tuple[list[int], list[int]]:
    """The places of the `count` highest scores, highest first, and of the lowest, lowest first; none is in both."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    highest = order[: min(count, -(-len(order) // 2))]
    return highest, order[len(highest) :][::-1][:count]
