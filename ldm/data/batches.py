"""Training batches: their order is a pure function of seed and step, for any number of processes."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.batch import ImageBatch
from ldm.data.augmentation import augmented, draws
from ldm.data.balanced_order import BalancedOrder
from ldm.data.datasets import Dataset, Subset
from ldm.data.order import Order, order_of
from ldm.errors import ConfigError
from ldm.randomness import StepRandom
from ldm.shapes import to_float


class BatchSpec(NamedTuple):
    """Which images one part of a global batch consists of, before anything is loaded."""

    rng: StepRandom
    epochs: list[int]  # which pass over the data, or over its class if they are balanced, each sample belongs to
    indices: list[int]  # index of each sample in the data set


@dataclass(frozen=True)
class BatchSampler:
    """The training images in the order in which they are seen: shuffled passes, one after the other, without end.

    With `balanced` it is the order of that, whose samples are numbered as in `samples`.

    Micro-batch m of a process belongs to step m // accumulation. The parts of a step tile the global batch, so that
    the batch is the same for any number of processes and any accumulation.
    """

    samples: tuple[int, ...]
    seed: int
    batch_size: int
    accumulation: int = 1
    processes: int = 1
    rank: int = 0
    balanced: BalancedOrder | None = None

    def spec(self, micro_batch: int) -> BatchSpec:
        """The part of the global batch that this process computes in its micro-batch number `micro_batch`."""
        step, micro_step = divmod(micro_batch, self.accumulation)
        parts, part = self.accumulation * self.processes, micro_step * self.processes + self.rank
        rng = StepRandom.of_part(self.seed, step, total=self.batch_size, parts=parts, part=part)
        first = step * self.batch_size + rng.start
        places = [self.place(position) for position in range(first, first + rng.count)]
        return BatchSpec(rng, [epoch for epoch, _ in places], [self.samples[place] for _, place in places])

    def place(self, position: int) -> tuple[int, int]:
        """Which pass the sample at a position of the order belongs to, and where in `samples` it is."""
        if self.balanced is not None:
            return self.balanced.place(position)
        epoch, step = divmod(position, len(self.samples))
        return epoch, int(shuffled(len(self.samples), self.seed, epoch)[step])


def balanced_order(training: Subset, seed: int) -> BalancedOrder | None:
    """The order that `data.balance` asks for; None at 0, where every image is seen equally often."""
    dataset, balance = training.dataset, training.dataset.config.balance
    if balance == 0:
        return None
    if not dataset.classes:
        raise ConfigError(
            f"data.balance {balance:g} needs classes, and these images have none: leave it at 0, or put the images of"
            " each class into a sub-folder"
        )
    return BalancedOrder(dataset.labels[training.indices], balance, seed)


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> Order:
    """The order of one pass: which sample is at a place, or at an array of them."""
    return order_of(count, seed, "order", epoch)


class ImageBatches(torch.utils.data.Dataset[ImageBatch]):
    """Training images by micro-batch number, augmented; what is drawn depends on (seed, epoch, image) alone."""

    def __init__(self, dataset: Dataset, sampler: BatchSampler):
        self.dataset, self.config, self.sampler = dataset, dataset.config, sampler

    def __getitem__(self, micro_batch: int) -> ImageBatch:
        spec, augment = self.sampler.spec(micro_batch), self.config.augment
        places = list(zip(spec.epochs, spec.indices, strict=True))
        images = torch.stack([to_float(self.view(*place)) for place in places])
        if augment is not None:
            drawn = [draws(self.sampler.seed, *place) for place in places]
            images = torch.stack([augmented(*pair, augment) for pair in zip(images, drawn, strict=True)])
        return ImageBatch(images, torch.from_numpy(self.dataset.labels[spec.indices]))

    def view(self, epoch: int, index: int) -> Tensor:
        """The image at its depth, cropped and mirrored as this epoch has it."""
        image, (height, width) = self.dataset.image(index).numpy(), self.config.sides
        drawn = draws(self.sampler.seed, epoch, index)
        if self.config.crop == "random":
            top = int(drawn.top * (image.shape[1] - height + 1))
            left = int(drawn.left * (image.shape[2] - width + 1))
            image = image[:, top : top + height, left : left + width]
        if self.config.flip and drawn.flip < 0.5:
            image = image[:, :, ::-1]
        return torch.from_numpy(image.copy())
