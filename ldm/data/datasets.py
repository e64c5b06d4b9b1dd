"""Data sets: decoded images with labels, conditions and groups, whatever they come from, and subsets of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.batch import ClassAttribute, Condition, ConditionSchema
from ldm.data.condition_columns import (
    CLASSES,
    ConditionColumn,
    ConditionTable,
    EmbeddedCaptions,
    conditions_fingerprint,
    schema_and_table,
)
from ldm.data.config import SOURCES, DataConfig, DataSourceConfig
from ldm.data.decoding import UnreadableImage, center_crop, fit
from ldm.data.kept_images import KeptImages
from ldm.data.split import explain_split, split_groups
from ldm.errors import DataError
from ldm.shapes import Images, to_float


@dataclass(eq=False)
class Dataset:
    """The images of a data set by index.

    An unreadable image is noted in `unreadable` when it is met, and the next readable one of the same label and on the
    same side of the split takes its place, in cyclic order. The split does not depend on what can be read, so it is the
    same whether images are met all at once or one by one, and no picture ends up on both sides of it.
    """

    config: DataConfig
    names: list[str]
    labels: np.ndarray  # int64, one per image; all 0 without classes
    classes: list[str]  # empty when nothing is labeled
    groups: list[str]  # images of one group belong on the same side of a split
    fingerprint: str  # of the files' content and the settings that shape the images; not of where they lie
    source: Callable[[int], np.ndarray]  # the decoded image, [channels, height, width] of `depth`, or UnreadableImage
    held_out_split: str = ""  # the split of the data that is held out; empty: a fraction of the images
    is_held_out: np.ndarray | None = None  # bool, one per image, where a split is
    columns: tuple[ConditionColumn, ...] = ()  # the conditions; without any, the classes are the only one
    captions: dict[str, EmbeddedCaptions] = field(default_factory=dict)  # of the texts among them, once embedded
    passed_over: Mapping[str, int] = field(default_factory=dict)  # other files, counted by ending
    notes: tuple[str, ...] = ()  # what else was found that a person should know
    _reasons: dict[int, str] = field(default_factory=dict)
    _cached: dict[int, np.ndarray] = field(default_factory=dict)
    _stack: np.ndarray | None = None
    _kept: KeptImages | None = None  # where not all of them fit into memory

    def __len__(self) -> int:
        return len(self.names)

    @property
    def unreadable(self) -> list[str]:
        """Path and reason of each unreadable image met so far."""
        return list(self._reasons.values())

    @property
    def is_in_memory(self) -> bool:
        """Whether every image is decoded already."""
        return len(self._cached) + len(self._reasons) == len(self)

    @property
    def schema(self) -> ConditionSchema:
        """What a model of these images can be conditioned on."""
        return self.schema_and_conditions()[0]

    @property
    def conditions(self) -> ConditionTable:
        """The conditions of all images by index, without the images."""
        return self.schema_and_conditions()[1]

    def schema_and_conditions(self) -> tuple[ConditionSchema, ConditionTable]:
        """Both, of the columns or else of the classes; texts must have been embedded (`ldm.text.captions`)."""
        if self.columns:
            return schema_and_table(self.columns, self.captions, self.split()[0].indices)
        if not self.classes:
            return ConditionSchema(), ConditionTable({}, {})
        values = {CLASSES: torch.from_numpy(self.labels)}
        return ConditionSchema((ClassAttribute(CLASSES, tuple(self.classes)),)), ConditionTable(values, {})

    def condition(self, indices: Sequence[int]) -> Condition:
        """The conditions of these images."""
        return self.conditions[indices]

    def with_conditions(self, fingerprint: str) -> str:
        """A fingerprint of what this and the conditions of all images are; the same if they are only the classes."""
        if not self.columns:
            return fingerprint
        return f"{fingerprint} {conditions_fingerprint(self.columns, self.captions)}"

    def split(self) -> "tuple[Subset, Subset]":
        """The training images and the held-out ones: splits of the data, or as `data.held_out` and `split_seed` say."""
        training, held_out = (np.flatnonzero(side).tolist() for side in (~self._sides, self._sides))
        return Subset(self, training), Subset(self, held_out)

    @cached_property
    def _sides(self) -> np.ndarray:
        """Whether each image is held out, bool."""
        if self.is_held_out is not None:
            return self.is_held_out
        config, labels = self.config, self.labels if self.classes else None
        sides = np.zeros(len(self), dtype=bool)
        sides[split_groups(self.groups, config.held_out, config.split_seed, labels)[1]] = True
        return sides

    def split_note(self) -> str:
        """One sentence on why another fraction than `data.held_out` is held out; empty if it is as asked."""
        if self.is_held_out is not None:
            return ""
        return explain_split(self.groups, self.config.held_out, self.split()[1].indices)

    def eval_view(self, index: int) -> Tensor:
        """One image at its depth as evaluation and the latent cache see it: cropped in the center, never mirrored."""
        return torch.as_tensor(center_crop(self.image(index).numpy(), self.config.sides))

    def view_or_failure(self, index: int) -> Tensor | UnreadableImage:
        """The same, but where it cannot be read the reason, and not another image in its place."""
        result = self._pixels(index)
        return (
            result if isinstance(result, UnreadableImage) else torch.as_tensor(center_crop(result, self.config.sides))
        )

    def image(self, index: int) -> Tensor:
        """The image as [channels, height, width] of the settings' depth.

        Its sides are exactly `size` when the crop is central; otherwise they are at least that, and the crop is due.
        """
        return torch.tensor(self._readable(index))

    def load(self, progress: bool = False) -> None:
        """Decode all images now if they fit into `cache_gb`, else at each access but for some."""
        config = self.config
        if len(self) * prod(config.shape) * np.dtype(config.depth).itemsize <= config.cache_gb * 1e9:
            self.preload(progress)
        else:
            self.keep_some()

    def preload(self, progress: bool = False) -> None:
        """Decodes every image once, in threads, and keeps as many as fit into `cache_gb`."""
        room = self.config.cache_gb * 1e9
        pool = ThreadPoolExecutor()
        try:
            decoded = pool.map(self._attempt, range(len(self)))
            for index, result in enumerate(tqdm(decoded, "decoding", len(self), disable=not progress)):
                if isinstance(result, UnreadableImage):
                    self._reasons[index] = str(result)
                elif result.nbytes <= room:
                    self._cached[index] = result.copy()  # a crop alone, without the image that it was cut from
                    room -= result.nbytes
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the images that are left
        self._check_unreadable()

    def stacked(self) -> np.ndarray | None:
        """All images as one array, images x channels x height x width; None if they differ in size or are not kept.

        The images that are kept move there, so that the memory is taken once.
        """
        if not self.is_in_memory or len({pixels.shape for pixels in self._cached.values()}) != 1:
            return None
        if self._stack is None:
            first = self._readable(0)
            self._stack = np.empty((len(self), *first.shape), first.dtype)
            for index, place in enumerate(self._stack):
                place[...] = self._readable(index)
                if index in self._cached:
                    self._cached[index] = place
        return self._stack

    def keep_some(self) -> None:
        """Keep as many decoded images as fit into `cache_gb`, as they are met."""
        config = self.config
        places = int(config.cache_gb * 1e9 / (prod(config.shape) * np.dtype(config.depth).itemsize + 1))
        if config.crop == "center" and places:
            self._kept = KeptImages(len(self), places, config.shape, np.dtype(config.depth))
            share = f"{places / len(self):.0%} of the decoded images are kept in memory (data.cache_gb)"
            self.notes = (*self.notes, share)

    def _pixels(self, index: int) -> np.ndarray | UnreadableImage:
        """The decoded image, as it is kept, or decoded now."""
        kept = self._cached.get(index) if self._kept is None else self._kept.get(index)
        if kept is not None:
            return kept
        result = self._attempt(index)
        if self._kept is not None and not isinstance(result, UnreadableImage):
            self._kept.put(index, result)
        return result

    def _readable(self, index: int) -> np.ndarray:
        """This image or, where it cannot be read, the first of its candidates that can."""
        for candidate in self._candidates(index):
            if candidate in self._reasons:
                continue
            result = self._pixels(candidate)
            if not isinstance(result, UnreadableImage):
                return result
            self._reasons[candidate] = str(result)
            tqdm.write(f"unreadable, replaced by another: {result}")
            self._check_unreadable()
        side = ("held-out " if self._sides[index] else "training ") if self._sides.any() else ""
        label = f" of class {self.classes[self.labels[index]]}" if self.classes and not self._sides[index] else ""
        raise DataError(f"no {side}image{label} can be read, for instance {self._reasons[index]}")

    def _candidates(self, index: int) -> Iterator[int]:
        """The image itself, and those that may stand for it: of its label and on its side of the split, from it on.

        Then, for a held-out image, of any label: it is only measured on. To train on one would teach a class wrongly.
        """
        yield index
        same_side = self._sides == self._sides[index]
        alike = [same_side & (self.labels == self.labels[index])]
        for group in [*alike, same_side] if self._sides[index] else alike:
            same = np.flatnonzero(group)
            yield from np.roll(same, -np.searchsorted(same, index, side="right")).tolist()

    def _attempt(self, index: int) -> np.ndarray | UnreadableImage:
        try:
            pixels = fit(self.source(index), self.config.sides, resize=self.config.resize)
        except UnreadableImage as error:
            return error
        return center_crop(pixels, self.config.sides) if self.config.crop == "center" else pixels

    def _check_unreadable(self) -> None:
        if len(self.unreadable) / len(self) > self.config.max_unreadable:
            allowed = f"more than data.max_unreadable = {self.config.max_unreadable:g} of them allows"
            raise DataError(
                f"{len(self.unreadable)} of {len(self)} images cannot be read, {allowed}: {self.unreadable[0]}"
            )


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a data set: training, held-out, or a few of them, in their evaluation views."""

    dataset: Dataset
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.dataset.config.shape

    @property
    def labels(self) -> Tensor:
        """The class index of each image, int64."""
        return torch.from_numpy(self.dataset.labels[self.indices])

    @property
    def condition(self) -> Condition:
        """The conditions of the images."""
        return self.dataset.condition(self.indices)

    def images(self) -> Images:
        """All of them, float B C H W in [-1, 1]."""
        return torch.stack([to_float(self.dataset.eval_view(index)) for index in self.indices])

    def chunks(self, size: int = 64) -> "Iterator[Subset]":
        """The same images, `size` at a time."""
        for start in range(0, len(self), size):
            yield Subset(self.dataset, self.indices[start : start + size])

    def evenly_spaced(self, count: int) -> "Subset":
        """`count` of them, or all, evenly from the first to the last."""
        places = np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)
        return Subset(self.dataset, [self.indices[place] for place in places])

    def every(self, step: int) -> "Subset":
        """Every `step`-th of them."""
        return Subset(self.dataset, self.indices[::step])


def list_dataset(config: DataSourceConfig) -> Dataset:
    """The data set that the config names, of which no image is decoded yet."""
    dataset: Dataset = SOURCES[config.kind].load()(config)
    return dataset


def open_dataset(config: DataSourceConfig, progress: bool = False) -> Dataset:
    """The data set that the config names, decoded now if it fits into `cache_gb`, else at each access but for some."""
    dataset = list_dataset(config)
    dataset.load(progress)
    return dataset
