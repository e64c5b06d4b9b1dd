"""Training batches: their order is a pure function of seed and step, for any number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ldm.batch import ImageBatch
from ldm.data.augmentation import crop_corner, cropped, draws, mirrored_and_turned, zoomed_and_toned
from ldm.data.balanced_order import BalancedOrder
from ldm.data.config import DataConfig
from ldm.data.datasets import Dataset, Subset
from ldm.data.device_store import fits_on
from ldm.data.order import Order, order_of
from ldm.errors import ConfigError, DataError
from ldm.randomness import StepRandom
from ldm.shapes import Labels, to_float
from ldm.training.config import RunConfig

Rows = TypeVar("Rows")
Batch = TypeVar("Batch")


class BatchSpec(NamedTuple):
    """Which images one part of a global batch consists of, before anything is loaded."""

    rng: StepRandom
    epochs: list[int]  # which pass over the data, or over its class if they are balanced, each sample belongs to
    indices: list[int]  # index of each sample in the data set

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Indices and epochs, in int64; NumPy reads a list five times as fast as torch."""
        return torch.from_numpy(np.array(self.indices, np.int64)), torch.from_numpy(np.array(self.epochs, np.int64))


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
        rng = self.rng(micro_batch)
        first = rng.step * self.batch_size + rng.start
        epochs, places = self.places(range(first, first + rng.count))
        return BatchSpec(rng, epochs, [self.samples[place] for place in places])

    def rng(self, micro_batch: int) -> StepRandom:
        """The random numbers of that part."""
        step, micro_step = divmod(micro_batch, self.accumulation)
        parts, part = self.accumulation * self.processes, micro_step * self.processes + self.rank
        return StepRandom.of_part(self.seed, step, total=self.batch_size, parts=parts, part=part)

    def places(self, positions: range) -> tuple[list[int], list[int]]:
        """Which pass each sample at these positions of the order belongs to, and where in `samples` it is."""
        if self.balanced is not None:
            pairs = [self.balanced.place(position) for position in positions]
            return [epoch for epoch, _ in pairs], [place for _, place in pairs]
        count, epochs, places = len(self.samples), list[int](), list[int]()
        for epoch in range(positions.start // count, -(-positions.stop // count)):
            steps = np.arange(*(min(max(end - epoch * count, 0), count) for end in (positions.start, positions.stop)))
            epochs += [epoch] * len(steps)
            places += shuffled(count, self.seed, epoch)[steps].tolist()
        return epochs, places


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


class ImageRows(NamedTuple):
    """What a data loader brings of a batch: which images it is of, and, where the device has none, their pixels."""

    indices: Tensor  # in the data set, int64
    epochs: Tensor  # int64
    labels: Labels
    pixels: Tensor | None  # at their depth, before they are mirrored; None: in the store


class TrainingBatches(torch.utils.data.Dataset[Rows], Generic[Rows, Batch]):
    """Batches by micro-batch number, in two halves: what workers load, and what the device makes of it.

    Neither depends on the workers, on what lies on the device, or on the batches before. `loads_data` says whether
    there is anything for workers to do: where all data lie on the device, the first half is numbers alone.
    """

    loads_data = True

    def __init__(self, sampler: BatchSampler):
        self.sampler = sampler

    def __getitem__(self, micro_batch: int) -> Rows:
        """What a data loader brings."""
        raise NotImplementedError

    def prepare(self, rows: Rows, rng: StepRandom) -> Batch:
        """The batch, made of the rows on their device, with the random numbers of its step; never waits for it."""
        raise NotImplementedError

    def batch(self, micro_batch: int, device: torch.device | str = "cpu") -> Batch:
        """Both halves of one batch."""
        return next(self.on_device(iter([self[micro_batch]]), device, micro_batch))

    def on_device(self, loader: Iterator[Rows], device: torch.device | str, first: int) -> Iterator[Batch]:
        """The batches of what an iterator of a data loader brings, whose first micro-batch has this number.

        An iterator, for to create one takes a number from torch's global generator, which is dropout's during a step.
        """
        try:
            for micro_batch, rows in enumerate(loader, first):
                yield self.prepare(to_device(rows, torch.device(device)), self.sampler.rng(micro_batch))
        except DataError as error:  # of a worker's, torch makes one whose message is all of its traceback
            *_, message = str(error).partition(f"{DataError.__module__}.{DataError.__name__}: ")
            raise DataError(message.strip() or str(error)) from None


def to_device(rows: Any, device: torch.device) -> Any:
    """The same named tuple of tensors and conditions, some perhaps left out, on a device."""
    waits = device.type != "cuda"
    return type(rows)(*(None if part is None else part.to(device, non_blocking=not waits) for part in rows))


class ImageBatches(TrainingBatches[ImageRows, ImageBatch]):
    """Training images, augmented; what is drawn depends on (seed, epoch, image) alone.

    Where all decoded images fit onto the device, they lie there at their depth as one store, and the rows are numbers.
    Else the rows have the pixels, cropped by the workers.
    """

    def __init__(
        self, dataset: Dataset, sampler: BatchSampler, device: torch.device | str = "cpu", run: RunConfig | None = None
    ):
        super().__init__(sampler)
        self.dataset, self.config = dataset, dataset.config
        self.labels = torch.from_numpy(dataset.labels)
        self.store: Tensor | None = None
        store = (run or RunConfig()).store
        pixels = dataset.stacked() if store != "host" else None
        if pixels is None and store == "device":
            raise ConfigError(
                "run.store device needs all decoded images in memory, and of one size: raise data.cache_gb, set"
                " data.crop center, or set run.store auto"
            )
        if pixels is not None and fits_on(device, pixels.nbytes, store, dataset.config.cache_gb):
            self.store, self.loads_data = torch.from_numpy(storable(pixels)).to(device), False

    def __getitem__(self, micro_batch: int) -> ImageRows:
        indices, epochs = self.sampler.spec(micro_batch).tensors()
        pixels = self.loaded(indices, epochs) if self.store is None else None
        return ImageRows(indices, epochs, self.labels[indices], pixels)

    def loaded(self, indices: Tensor, epochs: Tensor) -> Tensor:
        """The pixels of these images, cropped."""
        images = [self.dataset.image(index).numpy() for index in indices.tolist()]
        height, width = self.config.sides
        if self.config.crop == "random":
            drawn = draws(self.sampler.seed, epochs, indices)
            sizes = torch.tensor([image.shape[1:] for image in images])
            top, left = crop_corner(drawn, (sizes[:, 0], sizes[:, 1]), self.config.sides)
            corners = zip(images, top.tolist(), left.tolist(), strict=True)
            images = [image[:, y : y + height, x : x + width] for image, y, x in corners]
        return torch.from_numpy(storable(np.stack(images)))

    def prepare(self, rows: ImageRows, rng: StepRandom) -> ImageBatch:
        config, augment = self.config, self.config.augment
        pixels = rows.pixels
        drawn = draws(self.sampler.seed, rows.epochs, rows.indices) if is_random(config) else None
        if pixels is None:
            assert self.store is not None
            pixels = self.store.index_select(0, rows.indices)
            if drawn is not None and tuple(pixels.shape[-2:]) != config.sides:
                pixels = cropped(pixels, drawn, config.sides)
        if drawn is not None:
            pixels = mirrored_and_turned(pixels, drawn, config)
        images = to_float(pixels.view(torch.uint16) if config.depth == "uint16" else pixels)
        if drawn is not None and augment is not None:
            images = zoomed_and_toned(images, drawn, augment)
        return ImageBatch(images.contiguous(), rows.labels)


def is_random(config: DataConfig) -> bool:
    """Whether anything of an image is drawn."""
    return config.flip or config.crop == "random" or config.augment is not None


def storable(pixels: np.ndarray) -> np.ndarray:
    """The same bytes, in a type that torch can gather: it has few operations for uint16."""
    return pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels
