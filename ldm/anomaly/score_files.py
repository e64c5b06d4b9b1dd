"""Files with the scores of images: a table, its protocol, maps over the images, and a sheet of the extremes.

Their names are anomalib's: pred_score, pred_label, anomaly_map, pred_mask.
"""

import csv
import io
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.anomaly.detector import AnomalyDetector, AnomalyScores
from ldm.anomaly.image_scores import ImageScores, read
from ldm.anomaly.overlays import HeatScale, ends, overlay
from ldm.component.versions import versions_of
from ldm.data.datasets import Dataset
from ldm.evaluation.new_folder import NewFolder
from ldm.evaluation.sample_sheet import COLUMNS, captioned
from ldm.evaluation.saved_images import file_names
from ldm.pictures import picture, save_png
from ldm.shapes import Images, to_uint8

MAPS, MASKS = "maps", "masks"
PACKAGES = ("torch", "numpy", "pillow", "latent-diffusion-trainer")  # that results may depend on


class ScoreFolder(NewFolder):
    """A new folder with `maps/NAME.png`, the overlay, `maps/NAME.npy`, anomaly_map, and `masks/NAME.png`, pred_mask."""

    def __init__(self, folder: Path, dataset: Dataset, scale: HeatScale | None):
        super().__init__(folder, () if scale is None else (MAPS, MASKS))
        self.scale, self.names = scale, file_names(dataset.names)

    def write_maps(self, indices: Sequence[int], images: Images, scores: AnomalyScores) -> None:
        """Write the maps of a batch, if there are any."""
        if self.scale is None or scores.anomaly_map is None or scores.pred_mask is None:
            return
        rows = zip(indices, to_uint8(images), scores.anomaly_map, scores.pred_mask, strict=True)
        with self.named_in_errors():
            for index, image, anomaly_map, pred_mask in rows:
                name = self.names[index]
                save_png(picture(overlay(image, anomaly_map, self.scale)), self.partial / MAPS / f"{name}.png")
                np.save(self.partial / MAPS / f"{name}.npy", anomaly_map[0].numpy(), allow_pickle=False)
                save_png(picture(pred_mask.to(torch.uint8) * 255), self.partial / MASKS / f"{name}.png")


def heat_scale(detector: AnomalyDetector) -> HeatScale | None:
    """The scale of the detector's maps; None where it gives none."""
    if detector.map_threshold is None:
        return None
    return HeatScale.of_peaks(detector.fitted.map_calibration, detector.map_threshold)


def described(source: str, detector: AnomalyDetector, found: ImageScores) -> dict[str, Any]:
    """What a report of scores begins with: the detector, how many images, those without a score, versions."""
    return {
        "detector": {"source": source, **detector.facts},
        "images_with_a_score": len(found.readable),
        "unreadable": {found.dataset.names[index]: reason.reason for index, reason in found.failures.items()},
        "not_finite": found.not_finite,
        "versions": {"python": platform.python_version(), **versions_of(PACKAGES)},
    }


def table(found: ImageScores, labels: Tensor, truth: Sequence[bool] | None = None) -> bytes:
    """`path, pred_score, p_value, pred_label` of every image as CSV; an image that cannot be read has a path alone.

    `labels` are the verdicts on the readable ones, 1 for an anomaly. `truth` adds `gt_label`, of all of them.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "pred_score", "p_value", "pred_label", *(["gt_label"] if truth is not None else [])])
    rows = dict(
        zip(
            found.readable,
            zip(found.scores.pred_score.tolist(), found.scores.p_value.tolist(), labels.int().tolist(), strict=True),
            strict=True,
        )
    )
    for place, index in enumerate(found.indices):
        row = [found.dataset.names[index], *rows.get(index, ("", "", ""))]
        writer.writerow(row if truth is None else [*row, int(truth[place])])
    return text.getvalue().encode("utf-8", "surrogateescape")  # a path may be any bytes


def sheet(
    detector: AnomalyDetector,
    found: ImageScores,
    device: torch.device,
    masks_of: Callable[[Sequence[int]], Tensor | None] = lambda indices: None,
) -> Image.Image:
    """The most anomalous and the most normal images, each row above its maps, which are colored alike.

    Where `masks_of` gives the true masks of images by their index, those of the most anomalous ones stand below.
    """
    scores, scale = found.scores.pred_score.tolist(), heat_scale(detector)
    rows: dict[str, Tensor] = {}
    for kind, places in zip(("most anomalous", "most normal"), ends(scores, COLUMNS), strict=True):
        indices, _, images = read(found.dataset, [found.readable[place] for place in places])
        if images is None:
            continue
        pixels = to_uint8(images)
        rows[f"{kind} images: pred_score {scores[places[0]]:.4g} to {scores[places[-1]]:.4g}"] = pixels
        maps = detector.score(images.to(device)).anomaly_map
        if scale is not None and maps is not None:
            drawn = [overlay(image, each, scale) for image, each in zip(pixels, maps, strict=True)]
            rows[f"anomaly maps of the {kind} images"] = torch.stack(drawn)
        if (masks := masks_of(indices)) is not None and bool(masks.any()):
            rows[f"true masks of the {kind} images"] = masks.to(torch.uint8) * 255
    return captioned(rows)
