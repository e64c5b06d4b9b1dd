"""Sets of images that are compared: real ones, generated ones, and what an autoencoder makes of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.data.datasets import Subset
from ldm.evaluation.feature_networks import FeatureExtractor
from ldm.pipeline import LatentDiffusion, finite
from ldm.shapes import Labels, Latents, to_float, to_uint8
from ldm.training.processes import Processes

NO_LABELS = torch.zeros(0, dtype=torch.int64)


class ProgressBar(Protocol):
    """What the sets need of a progress bar."""

    def __enter__(self) -> "ProgressBar": ...

    def __exit__(self, *exception: object) -> object: ...

    def update(self, count: int = 1) -> object:
        """So many more are done."""
        ...


Progress = Callable[[str, int, str], ProgressBar]  # what is done, how many there are, and of what


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with all that is measured of them, on the CPU; row i of each tensor belongs to the same image."""

    pixels: Tensor  # uint8, images x channels x height x width: what is compared is what would be stored
    labels: Labels  # class indices; of the samples, the classes they were asked for; empty where there are none
    indices: tuple[int, ...]  # in the data set, or the numbers of the samples
    groups: tuple[str, ...] = ()  # of real images: what is of one group is nearly the same
    latents: Latents | None = None  # modes of the posteriors, or what the sampler gave; None without an autoencoder
    features: Tensor | None = None  # images x features

    def __len__(self) -> int:
        return len(self.pixels)

    def first(self, count: int) -> "ImageSet":
        """The first of them."""
        return self[torch.arange(min(count, len(self)))]

    def evenly_spaced(self, count: int) -> "ImageSet":
        """`count` of them, or all, evenly from the first to the last."""
        return self[torch.from_numpy(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))]

    def __getitem__(self, rows: Tensor) -> "ImageSet":
        places = rows.tolist()
        return ImageSet(
            self.pixels[rows],
            self.labels[rows] if len(self.labels) else NO_LABELS,
            tuple(self.indices[place] for place in places),
            tuple(self.groups[place] for place in places) if self.groups else (),
            None if self.latents is None else self.latents[rows],
            None if self.features is None else self.features[rows],
        )


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn; image i depends on these, on its class and on i alone."""

    sampler: str = "heun"
    steps: int = 18
    guidance: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class ImageSetReader:
    """Reads, draws and decodes sets of images, batch by batch, on all processes: the same for any number of them."""

    processes: Processes
    batch_size: int
    progress: Progress

    @torch.no_grad()
    def read(self, images: Subset, autoencoder: Autoencoder | None, name: str, labels: Labels) -> ImageSet:
        """Real images, and their latents where there is an autoencoder; `labels` are those of all of them."""
        device, parts = self.processes.device, list(images.chunks(self.batch_size))

        def of_part(number: int) -> tuple[Tensor, Tensor | None]:
            pixels = to_uint8(parts[number].images())
            latents = None
            if autoencoder is not None:
                latents = autoencoder.encode(to_float(pixels).to(device)).mode().float().cpu()
            return pixels, latents

        found: list[tuple[Tensor, Tensor | None]] = []
        with self.progress(name, len(images), "image") as bar:
            for part, result in zip(parts, self.processes.map(len(parts), of_part), strict=True):
                found.append(result)
                bar.update(len(part))
        latents = [latents for _, latents in found if latents is not None]
        return ImageSet(
            torch.cat([pixels for pixels, _ in found]),
            labels,
            tuple(images.indices),
            tuple(images.dataset.groups[index] for index in images.indices),
            torch.cat(latents) if latents else None,
        )

    def draw(self, model: LatentDiffusion, num: int, labels: Labels, settings: SamplingSettings) -> ImageSet:
        """Samples of the model, numbered from 0, of these classes."""
        condition = model.config.schema.condition(labels)
        parts = torch.arange(num).split(self.batch_size)
        own_steps = -(-len(parts) // self.processes.count) * settings.steps  # those of the process that has the bar
        with self.progress("sampling", own_steps, "step") as bar:

            def of_part(number: int) -> tuple[Tensor, Tensor]:
                numbers = parts[number]
                latents = model.sample_latents(
                    numbers.tolist(), condition[numbers], **vars(settings), on_step=bar.update
                )
                return to_uint8(model.decode(latents)), latents.float().cpu()

            found = list(self.processes.map(len(parts), of_part))
        pixels, latents = (torch.cat(each) for each in zip(*found, strict=True))
        return ImageSet(pixels, labels if len(model.classes) else NO_LABELS, tuple(range(num)), (), latents)

    @torch.no_grad()
    def decode(self, latents: Latents, autoencoder: Autoencoder, like: ImageSet, name: str) -> ImageSet:
        """The images of latents, cropped to the size of those of `like`, whose labels they have."""
        parts, (height, width) = latents.split(self.batch_size), like.pixels.shape[2:]

        def of_part(number: int) -> Tensor:
            images = autoencoder.decode(parts[number].to(self.processes.device))[..., :height, :width]
            return to_uint8(finite(images)).cpu()

        found = []
        with self.progress(name, len(latents), "image") as bar:
            for pixels in self.processes.map(len(parts), of_part):
                found.append(pixels)
                bar.update(len(pixels))
        return ImageSet(torch.cat(found), like.labels, like.indices, like.groups, latents)

    @torch.no_grad()
    def with_features(self, images: ImageSet, extractor: FeatureExtractor, name: str) -> ImageSet:
        """The same with the features of an extractor."""
        parts = images.pixels.split(self.batch_size)

        def of_part(number: int) -> Tensor:
            return extractor.features(to_float(parts[number]).to(self.processes.device)).float().cpu()

        found = []
        with self.progress(name, len(images), "image") as bar:
            for features in self.processes.map(len(parts), of_part):
                found.append(features)
                bar.update(len(features))
        return replace(images, features=torch.cat(found))


def allocated_labels(counts: Sequence[int], num: int) -> Labels:
    """Classes for samples number 0, 1, ..., as frequent as `counts` says: each the class that is most behind.

    Label i depends on the frequencies alone, and not on how many there are; every beginning of the list has about the
    right shares.
    """
    shares = np.array(counts, dtype=np.float64) / sum(counts)
    given, labels = np.zeros(len(shares)), []
    for number in range(num):
        labels.append(int(np.argmax(np.round(shares * (number + 1) - given, 9))))  # of equal ones the first
        given[labels[-1]] += 1
    return torch.tensor(labels, dtype=torch.int64)
