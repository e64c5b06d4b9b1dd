"""Images of which it is known whether they are anomalies, and perhaps where: what a detector is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.anomaly.normal_images import NormalImages, hash_of
from ldm.data.config import MVTecConfig
from ldm.data.datasets import Dataset
from ldm.data.decoding import UnreadableImage
from ldm.data.mvtec import GOOD, find_masks, mvtec_test_images, read_mask
from ldm.errors import DataError


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """Some images of a data set with classes, one of which is normal."""

    dataset: Dataset
    normal_label: int
    indices: list[int]
    left_out: int = 0  # normal images that the detector was made with
    masks: list[Path | None] | None = None  # the mask of every image of the data set; None without masks

    def is_anomalous(self, indices: Sequence[int]) -> Tensor:
        """Whether each of these images is not of the normal class."""
        return torch.from_numpy(self.dataset.labels[list(indices)] != self.normal_label)

    def kinds(self, indices: Sequence[int]) -> list[str]:
        """The class of each."""
        return [self.dataset.classes[self.dataset.labels[index]] for index in indices]

    def read_masks(self, indices: Sequence[int]) -> Tensor | None:
        """The masks of readable images as these are seen, B 1 H W; None without masks."""
        config = self.dataset.config
        if self.masks is None or not isinstance(config, MVTecConfig):
            return None
        found = []
        for index in indices:
            file = self.masks[index]
            height, width = self.dataset.source(index).shape[1:] if file is not None else config.sides
            found.append(read_mask(file, (height, width), config))
        return torch.stack(found)


def mvtec_labeled(config: MVTecConfig, known: NormalImages) -> LabeledImages:
    """The images of `test`; DataError where none of them is good, or where the masks are not those of the images."""
    dataset = mvtec_test_images(config)
    if GOOD not in dataset.classes:
        raise DataError(f"{config.path}: test has no folder {GOOD}, and detection is measured on normal images too")
    labeled = one_class_normal(dataset, dataset.classes.index(GOOD), known)
    return LabeledImages(
        dataset, labeled.normal_label, labeled.indices, labeled.left_out, find_masks(config.path, dataset.names)
    )


def one_class_normal(dataset: Dataset, label: int, known: NormalImages) -> LabeledImages:
    """All images, those of one class being normal; of these without those that the detector was made with.

    DataError where only normal or only anomalous images are left.
    """
    chosen = [index for index in range(len(dataset)) if dataset.labels[index] != label or is_new(dataset, index, known)]
    left_out = len(dataset) - len(chosen)
    labeled = LabeledImages(dataset, label, chosen, left_out)
    anomalous = int(labeled.is_anomalous(chosen).sum())
    if not anomalous:
        raise DataError(
            f"all {len(dataset)} images are of class {dataset.classes[label]}, the normal one: detection is measured on"
            " anomalies too"
        )
    if anomalous == len(chosen):
        raise DataError(
            f"the detector was made with all {left_out} normal images: fit it with --held-out to keep some for this, or"
            " give others"
        )
    return labeled


def is_new(dataset: Dataset, index: int, known: NormalImages) -> bool:
    """Whether the detector was not made with an image; one that cannot be read stays, to be named."""
    if not known.hashes:
        return True
    view = dataset.view_or_failure(index)
    return isinstance(view, UnreadableImage) or hash_of(view) not in known.hashes
