"""The listing of a data set, made before any image is decoded: names, labels, groups, splits, where to read them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np

from ldm.data.config import FolderConfig
from ldm.errors import DataError

Value = TypeVar("Value", int, str)
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")  # of metadata and Parquet files
NOTHING: Mapping[str, Any] = MappingProxyType({})  # one for all images of which metadata says nothing


@dataclass(frozen=True, slots=True)
class Entry:
    """An image that has not been decoded."""

    name: str  # its path from `data.path` on, or inside an archive
    label: str | int | None
    group: str
    split: str = ""  # train, val, ... as it is called there; empty where there are no splits
    row: Mapping[str, Any] = field(
        default_factory=lambda: NOTHING
    )  # what metadata says of it, where conditions are asked for


class ImageStore(Protocol):
    """Gives images by name, to any thread of any process."""

    def image(self, name: str, config: FolderConfig) -> np.ndarray:
        """The decoded image, [channels, height, width] at the depth of `config`, or UnreadableImage."""

    def checksum(self, name: str) -> list[int]:
        """Numbers that another content changes, without reading all of a large file; empty if it cannot be read."""

    def size(self, name: str) -> list[int]:
        """Bytes of the image as it is stored, as one number or several, without reading it; empty if there are none."""


@dataclass
class Listing:
    """The images that `data.path` holds, and what lies beside them."""

    entries: list[Entry]
    store: ImageStore
    passed_over: Counter[str] = field(default_factory=Counter)  # other files, counted by ending
    captions: Counter[str] = field(default_factory=Counter)  # text on images, which is not used, by where it is
    unnamed: int = 0  # images that metadata does not name
    notes: list[str] = field(default_factory=list)  # what else a person should know, each a part of a sentence
    patterns_used: set[str] = field(default_factory=set)  # those of `data.exclude` that left something out

    def all_notes(self) -> list[str]:
        """The notes, and what was counted beside the files passed over."""
        unnamed = [f"passed over, as no metadata names them: {self.unnamed:,} images"] if self.unnamed else []
        captions = [f"captions ({ending}) are not used: {count:,}" for ending, count in self.captions.items()]
        return [*self.notes, *unnamed, *captions]


@dataclass(frozen=True)
class StoreOfSeveral:
    """The images of several files; a name is that of its file, a slash, and the name there."""

    stores: dict[str, ImageStore]

    def image(self, name: str, config: FolderConfig) -> np.ndarray:
        """The decoded image, or UnreadableImage."""
        file, inner = self._divided(name)
        return self.stores[file].image(inner, config)

    def checksum(self, name: str) -> list[int]:
        """What the file's own store says of its content."""
        file, inner = self._divided(name)
        return self.stores[file].checksum(inner)

    def size(self, name: str) -> list[int]:
        """What the file's own store says of its size."""
        file, inner = self._divided(name)
        return self.stores[file].size(inner)

    def _divided(self, name: str) -> tuple[str, str]:
        file = next(name[:place] for place, letter in enumerate(name) if letter == "/" and name[:place] in self.stores)
        return file, name[len(file) + 1 :]


def joined(listings: dict[str, Listing]) -> Listing:
    """Several listings, by the name of the file that each is of, as one."""
    if len(listings) == 1:
        return next(iter(listings.values()))
    entries = list[Entry]()
    for file, listing in listings.items():
        for entry in listing.entries:
            name = f"{file}/{entry.name}"
            group = name if entry.group == entry.name else entry.group  # one text in memory, of perhaps millions
            entries.append(replace(entry, name=name, group=group))
        listing.entries.clear()
    whole = Listing(entries, StoreOfSeveral({file: each.store for file, each in listings.items()}))
    for listing in listings.values():
        whole.passed_over.update(listing.passed_over)
        whole.captions.update(listing.captions)
        whole.unnamed += listing.unnamed
        whole.notes += [note for note in listing.notes if note not in whole.notes]
        whole.patterns_used |= listing.patterns_used
    return whole


def check_label(value: object, column: str) -> None:
    """Raise ValueError unless a label or a group is text, a whole number, or left out."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError(f"{column} is neither text nor a whole number")


def check_labels(entries: Sequence[Entry], place: str, advice: str = "") -> None:
    """Raise DataError unless every image has a label or none has."""
    with_label = next((entry.name for entry in entries if entry.label is not None), None)
    without = next((entry.name for entry in entries if entry.label is None), None)
    if with_label is not None and without is not None:
        raise DataError(
            f"{place}: {with_label} has a label and {without} has none: give every image one, or read all without"
            f" by --data.labels none{advice}"
        )


def labels_and_classes(labels: list[str | int | None]) -> tuple[np.ndarray, list[str]]:
    """Class indices, and the names of the classes: whole numbers in their order, everything else as text."""
    if labels[0] is None:
        return np.zeros(len(labels), dtype=np.int64), []
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        indices, distinct = indices_and_values(numbers)
        return indices, [str(number) for number in distinct]
    return indices_and_values([str(label) for label in labels])


def indices_and_values(values: Sequence[Value]) -> tuple[np.ndarray, list[Value]]:
    """The distinct values in their order, and the place of each value among them.

    An array of texts would take as much memory for each as for the longest.
    """
    distinct = sorted(set(values))
    places = {value: place for place, value in enumerate(distinct)}
    return np.fromiter((places[value] for value in values), np.int64, len(values)), distinct
