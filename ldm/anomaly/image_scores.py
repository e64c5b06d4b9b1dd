"""Scores of the images of a data set, on as many processes as there are; one that cannot be read is named, not lost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ldm.anomaly.detector import AnomalyDetector, AnomalyScores
from ldm.data.datasets import Dataset
from ldm.data.decoding import UnreadableImage
from ldm.errors import DataError
from ldm.shapes import Images, to_float
from ldm.training.processes import Processes

OnBatch = Callable[[Sequence[int], Images, AnomalyScores], object]  # indices, the images, their scores with maps


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Scores of some images of a data set; row i of `scores` is of image `readable[i]`."""

    dataset: Dataset
    indices: list[int]  # all that were asked for
    readable: list[int]
    failures: dict[int, UnreadableImage]  # of the others
    scores: AnomalyScores

    @property
    def not_finite(self) -> dict[str, list[str]]:
        """The scores that are not finite numbers, by the name of the image."""
        rows = zip(self.readable, self.scores.not_finite, strict=True)
        return {self.dataset.names[index]: names for index, names in rows if names}


@dataclass(frozen=True)
class ImageScorer:
    """A detector over the images of a data set, batch by batch: the same for any number of processes."""

    detector: AnomalyDetector
    processes: Processes
    batch_size: int
    on_images: Callable[[int], object] = lambda count: None

    def score(
        self, dataset: Dataset, indices: Sequence[int], *, keep_maps: bool = False, on_batch: OnBatch | None = None
    ) -> ImageScores:
        """The scores of these images; `on_batch` is called by the process that computed them. DataError if none can be
        read.

        Maps are given to `on_batch`, and kept only if `keep_maps` says so.
        """
        batches = [list(indices[start : start + self.batch_size]) for start in range(0, len(indices), self.batch_size)]

        def work(number: int) -> tuple[list[int], dict[int, UnreadableImage], AnomalyScores | None]:
            readable, failures, images = read(dataset, batches[number])
            if images is None:
                return readable, failures, None
            found = self.detector.score(images.to(self.processes.device))
            if on_batch is not None:
                on_batch(readable, images, found)
            return readable, failures, found if keep_maps else found.without_maps()

        readable: list[int] = []
        failures: dict[int, UnreadableImage] = {}
        parts = []
        for batch, result in zip(batches, self.processes.map(len(batches), work), strict=True):
            readable += result[0]
            failures |= result[1]
            parts += [result[2]] if result[2] is not None else []
            self.on_images(len(batch))
        if not parts:
            raise DataError(
                f"none of the {len(indices)} images can be read, for instance {next(iter(failures.values()))}"
            )
        return ImageScores(dataset, list(indices), readable, failures, AnomalyScores.joined(parts))


def read(dataset: Dataset, indices: Sequence[int]) -> tuple[list[int], dict[int, UnreadableImage], Images | None]:
    """Which images can be read, why the others cannot, and those that can, None if there are none."""
    readable, failures, views = [], {}, []
    for index in indices:
        view = dataset.view_or_failure(index)
        if isinstance(view, UnreadableImage):
            failures[index] = view
        else:
            readable.append(index)
            views.append(to_float(view))
    return readable, failures, torch.stack(views) if views else None
