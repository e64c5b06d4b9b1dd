"""Sets of images that are compared: real ones, generated ones, and what an autoencoder makes of them."""

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.batch import Condition
from ldm.data.condition_columns import ConditionTable
from ldm.data.datasets import Subset
from ldm.diffusion.guidance import ConditionalDenoise, GuidanceInterval, checked_guidance
from ldm.diffusion.sampling import finite
from ldm.evaluation.feature_networks import FeatureExtractor
from ldm.pipeline import LatentDiffusion
from ldm.shapes import Labels, Latents, to_float, to_uint8
from ldm.training.processes import Processes

P = TypeVar("P", bound=Sized)
T = TypeVar("T")
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
    asked: Mapping[str, Labels] = field(default_factory=dict)  # class indices that samples were asked for, by condition

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
            {name: labels[rows] for name, labels in self.asked.items()},
        )


@dataclass(frozen=True)
class SamplingSettings:
    """How samples are drawn; image i depends on these, on its class and on i alone."""

    sampler: str = "heun"
    steps: int = 18
    guidance: float = 1.0
    seed: int = 0
    guidance_interval: GuidanceInterval | None = None
    guidance_rescale: float = 0.0
    guide: str | None = None  # where the guide of autoguidance comes from
    sampler_options: tuple[tuple[str, float], ...] = ()
    guide_denoiser: ConditionalDenoise | None = None  # that guide
    ema: float | None = None  # length of the average of the weights; None: the one that was exported

    def entry(self) -> dict[str, Any]:
        """What a report says of them; of the later ones only what is not as it always was."""
        entry: dict[str, Any] = {name: getattr(self, name) for name in ("sampler", "steps", "guidance", "seed")}
        later = ("guidance_interval", "guidance_rescale", "guide", "ema")
        entry |= {name: getattr(self, name) for name in later if getattr(self, name)}
        return entry | dict(self.sampler_options)

    def of(self, model: LatentDiffusion) -> dict[str, Any]:
        """The same as arguments of `model.sample_latents`."""
        guidance = checked_guidance(
            self.guidance,
            model.config.schema,
            model.config.trained_with_condition_dropout,
            interval=None if self.guidance == 1 else self.guidance_interval,
            rescale=None if self.guidance == 1 else self.guidance_rescale,
            guide=self.guide_denoiser,
        )
        options = dict(self.sampler_options)
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "seed": self.seed,
            "guidance": guidance,
            "sampler_options": options,
        }


@dataclass(frozen=True)
class ImageSetReader:
    """Reads, draws and decodes sets of images, batch by batch, on all processes: the same for any number of them."""

    processes: Processes
    batch_size: int
    progress: Progress

    def read(self, images: Subset, labels: Labels, name: str) -> ImageSet:
        """Images of a data set, in their evaluation views; `labels` are those of all of them, or none."""
        parts = list(images.chunks(self.batch_size))
        found = self._all(name, len(images), parts, lambda part: to_uint8(part.images()))
        groups = tuple(images.dataset.groups[index] for index in images.indices)
        return ImageSet(torch.cat(found), labels, tuple(images.indices), groups)

    @torch.no_grad()
    def encode(self, pixels: Tensor, autoencoder: Autoencoder, name: str, *, mirrored: bool = False) -> "Encoded":
        """The latents of uint8 images, or of their mirror images."""

        def of_part(part: Tensor) -> Encoded:
            images = to_float(part).to(self.processes.device)
            posterior = autoencoder.encode(images.flip(-1) if mirrored else images)
            return Encoded(finite(posterior.mode()).float().cpu(), posterior.variance.cpu().double().mean((2, 3)))

        found = self._all(name, len(pixels), pixels.split(self.batch_size), of_part)
        return Encoded(*(torch.cat(each) for each in zip(*found, strict=True)))

    def draw(
        self, model: LatentDiffusion, num: int, condition: Condition | ConditionTable, settings: SamplingSettings
    ) -> ImageSet:
        """Samples of the model, numbered from 0, of these conditions."""
        arguments = settings.of(model)
        parts = torch.arange(num).split(self.batch_size)
        own_steps = -(-len(parts) // self.processes.count) * settings.steps  # those of the process that has the bar
        with self.progress("sampling", own_steps, "step") as bar:

            def of_part(number: int) -> tuple[Tensor, Tensor]:
                numbers = parts[number]
                latents = model.sample_latents(numbers.tolist(), condition[numbers], **arguments, on_step=bar.update)
                return to_uint8(model.decode(latents)), latents.float().cpu()

            found = list(self.processes.map(len(parts), of_part))
        pixels, latents = (torch.cat(each) for each in zip(*found, strict=True))
        return ImageSet(pixels, NO_LABELS, tuple(range(num)), (), latents)

    @torch.no_grad()
    def decode(self, latents: Latents, autoencoder: Autoencoder, like: ImageSet, name: str) -> ImageSet:
        """The images of latents, cropped to the size of those of `like`, whose labels they have."""
        height, width = like.pixels.shape[2:]

        def of_part(part: Latents) -> Tensor:
            images = autoencoder.decode(part.to(self.processes.device))[..., :height, :width]
            return to_uint8(finite(images)).cpu()

        found = self._all(name, len(latents), latents.split(self.batch_size), of_part)
        return ImageSet(torch.cat(found), like.labels, like.indices, like.groups, latents)

    @torch.no_grad()
    def with_features(self, images: ImageSet, extractor: FeatureExtractor, name: str) -> ImageSet:
        """The same with the features of an extractor."""

        def of_part(part: Tensor) -> Tensor:
            return extractor.features(to_float(part).to(self.processes.device)).float().cpu()

        found = self._all(name, len(images), images.pixels.split(self.batch_size), of_part)
        return replace(images, features=torch.cat(found))

    def _all(self, name: str, total: int, parts: Sequence[P], work: Callable[[P], T]) -> list[T]:
        """The results for all parts of `total` images."""
        found = []
        with self.progress(name, total, "image") as bar:
            for part, result in zip(
                parts, self.processes.map(len(parts), lambda number: work(parts[number])), strict=True
            ):
                found.append(result)
                bar.update(len(part))
        return found


class Encoded(NamedTuple):
    """Latents of images: the modes of their posteriors, and the variance of each channel, the mean over positions."""

    modes: Latents
    variances: Tensor  # images x channels


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
