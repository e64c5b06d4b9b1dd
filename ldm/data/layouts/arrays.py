"""Stacks of images in one array: .npz as MedMNIST has it, .npy, and idx as MNIST; nothing is unpickled."""

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.data.bit_depth import to_bit_depth, with_channels
from ldm.data.config import FolderConfig
from ldm.data.decoding import UnreadableImage
from ldm.data.layouts.listing import Entry, Listing
from ldm.data.layouts.splits import SPLITS, split_named
from ldm.errors import DataError

PLAIN_IMAGES, PLAIN_LABELS = ("images", "imgs", "x", "X", "data", "arr_0"), ("labels", "label", "y", "Y", "arr_1")
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class StackedImages:
    """Images along the first axis of arrays; a name is the number of the image, behind its split if there is one."""

    file: Path
    arrays: dict[str, np.ndarray]  # by split, or under an empty name

    def image(self, name: str, config: FolderConfig) -> np.ndarray:
        """The decoded image, or UnreadableImage."""
        try:
            return _decoded(self._stored(name), config)
        except ValueError as error:
            raise UnreadableImage(f"{self.file}, image {name}", str(error)) from error

    def checksum(self, name: str) -> list[int]:
        """Size in bytes, and CRC-32 of the first 64 KiB."""
        content = self._stored(name).tobytes()
        return [len(content), zlib.crc32(content[: 2**16])]

    def size(self, name: str) -> list[int]:
        """Size in bytes."""
        return [self._stored(name).nbytes]

    def _stored(self, name: str) -> np.ndarray:
        split, _, number = name.rpartition("/")
        return np.asarray(self.arrays[split][int(number)])


def list_npz(file: Path, config: FolderConfig) -> Listing:
    """The images of an .npz: `train_images` and `train_labels`, `x_train` and `y_train`, or `images` and `labels`."""
    keys = _keys_of_npz(file)
    pairs = _split_keys(keys) if config.split != "none" else {}
    if config.split == "none" and (several := _split_keys(keys)):
        raise DataError(f"{file} has an array for each split ({', '.join(several)}): choose one with --data.split")
    if not pairs:
        images = next((key for key in PLAIN_IMAGES if key in keys), "")
        if not images:
            raise DataError(
                f"{file} holds the arrays {', '.join(keys)}; expected images (and labels), or train_images, val_images,"
                " test_images (and train_labels, ...)"
            )
        pairs = {"": (images, next((key for key in PLAIN_LABELS if key in keys), ""))}
    entries: list[Entry] = []
    store = StackedImages(file, {})
    for split, (images, labels) in pairs.items():
        store.arrays[split] = _array(file, images)
        found = _array(file, labels) if labels and config.labels != "none" else None
        entries += _entries(file, split, store.arrays[split], found)
    _check_labeled(entries, config, file)
    return Listing(entries, store)


def list_npy(file: Path, config: FolderConfig) -> Listing:
    """The images along the first axis of an .npy."""
    stack = _array(file)
    if stack.ndim == 3 and stack.shape[2] <= 4 and min(stack.shape[:2]) > stack.shape[2]:
        shape = " x ".join(map(str, stack.shape))
        raise DataError(f"data.path {file} is one image of {shape} values: give the folder that it lies in")
    entries = _entries(file, "", stack, None)
    _check_labeled(entries, config, file)
    return Listing(entries, StackedImages(file, {"": stack}))


def list_idx(file: Path, config: FolderConfig) -> Listing:
    """The images of an idx3 file of the MNIST family, with the labels of the idx1 file beside it, gzipped or not."""
    labels = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
    stack, found = (
        _array(file),
        _array(labels) if labels != file and labels.is_file() and config.labels != "none" else None,
    )
    words = file.name.replace(".", "-").split("-")
    split = next((word for word in words if split_named(word)), "") if config.split != "none" else ""
    entries = _entries(file, split, stack, found)
    _check_labeled(entries, config, file)
    return Listing(entries, StackedImages(file, {split: stack}))


def _entries(file: Path, split: str, images: np.ndarray, labels: np.ndarray | None) -> list[Entry]:
    if images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{file}: {' x '.join(map(str, images.shape)) or 'one number'} values are no stack of images, number x"
            " height x width, perhaps x channels; to read one image per .npy, give their folder"
        )
    if images.dtype.kind not in "uif":
        raise DataError(f"{file}: images of type {images.dtype}; uint8, uint16 and floats are read")
    found: Sequence[object] = [None] * len(images)
    if labels is not None:
        if labels.size != len(images) or labels.dtype.kind not in "iuU":
            raise DataError(
                f"{file}: labels are {' x '.join(map(str, labels.shape))} of type {labels.dtype}, not one whole number"
                f" or text for each of the {len(images)} images: --data.labels none reads without them"
            )
        found = labels.ravel().tolist()
    names = [f"{split}/{number:07d}" if split else f"{number:07d}" for number in range(len(images))]
    pairs = zip(names, found, strict=True)
    return [Entry(name, label, name, split) for name, label in pairs if isinstance(label, int | str | None)]


def _check_labeled(entries: Sequence[Entry], config: FolderConfig, file: Path) -> None:
    if config.labels in ("metadata", "folder") and all(entry.label is None for entry in entries):
        raise DataError(f"{file} has no labels, as data.labels {config.labels} asks")


def _split_keys(keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The names of the images and of the labels of each split; the labels' is empty where there are none."""
    found = {}
    for word in (word for words in SPLITS.values() for word in words):
        for images, labels in ((f"{word}_images", f"{word}_labels"), (f"x_{word}", f"y_{word}")):
            if images in keys:
                found[word] = (images, labels if labels in keys else "")
    return found


def _keys_of_npz(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{file} is damaged or no .npz: {error}") from error


def _array(file: Path, key: str = "") -> np.ndarray:
    """An array of a file, in memory, or mapped if it is an .npy."""
    try:
        if key:
            with np.load(file, allow_pickle=False) as arrays:
                array = arrays[key]
        elif file.suffix == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            array = _read_idx(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        reason = (
            "an array of Python objects, which is never unpickled" if "pickle" in str(error).lower() else str(error)
        )
        raise DataError(f"{file}{f', {key}' if key else ''} cannot be read: {' '.join(reason.split())}") from error
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and array.size and 0 <= array.min() <= array.max() <= 255:
        return array.astype(np.uint8)  # NumPy's own integers, in which a list of bytes ends up
    return array


def _read_idx(file: Path) -> np.ndarray:
    content = file.read_bytes()
    content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    zeros, kind, axes = struct.unpack(">HBB", content[:4])
    if zeros or kind not in IDX_TYPES:
        raise ValueError("not an idx file")
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, IDX_TYPES[kind], offset=4 + 4 * axes)
    if len(values) != math.prod(shape):
        raise ValueError(f"{len(values)} values, not {' x '.join(map(str, shape))}")
    return values.reshape(shape)


def _decoded(values: np.ndarray, config: FolderConfig) -> np.ndarray:
    """One image of a stack; the channels are the last axis or the first, as in a file of one image."""
    values, channels = values.astype(values.dtype.newbyteorder("="), copy=False), config.channels
    if values.ndim == 2:
        values = values[None]
    elif values.shape[2] == channels or (values.shape[0] != channels and values.shape[2] <= values.shape[0]):
        values = values.transpose(2, 0, 1)
    height, width = values.shape[1:]
    if not 0 < height * width <= config.pixel_limit:
        raise ValueError(f"{width} x {height} pixels; from 1 to {config.pixel_limit} are allowed")
    values = to_bit_depth(values, config, bytes_too=True)
    if len(values) == config.channels:
        return np.ascontiguousarray(values)
    if len(values) > 4 or config.channels > 4:
        raise ValueError(f"{len(values)} channels where data.channels is {config.channels}")
    has_alpha, color = len(values) in (2, 4), values[:3] if len(values) > 2 else np.repeat(values[:1], 3, axis=0)
    return with_channels(color, values[-1:] if has_alpha else None, config)
