"""Lists the images of a folder before any is decoded: their names, labels and groups."""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ldm.data.decoding import EXTENSIONS
from ldm.errors import DataError


@dataclass(frozen=True)
class Entry:
    """What is known of an image before it is decoded."""

    name: str  # its path from the folder on
    label: str | int | None
    group: str


def listing(folder: Path) -> list[Entry]:
    """The images of `folder` in the order of their names: those of its metadata.jsonl, or all that lie in it."""
    if not folder.is_dir():
        raise DataError(f"data.path {folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    metadata = folder / "metadata.jsonl"
    return _described(folder, metadata) if metadata.exists() else _scanned(folder)


def _scanned(folder: Path) -> list[Entry]:
    """The images of a flat folder without labels, or those of sub-folders with the first part of the path as class."""
    names = image_names(folder)
    if not names:
        raise DataError(f"data.path {folder} holds no images; looked for {' '.join(EXTENSIONS)}")
    outside, inside = ([name for name in names if ("/" in name) is nested] for nested in (False, True))
    if outside and inside:
        both = f"images at the top ({outside[0]}) and in sub-folders ({inside[0]})"
        raise DataError(f"data.path {folder} holds {both}: move all of them into one sub-folder per class, or none")
    return [Entry(name, name.split("/")[0] if inside else None, name) for name in names]


def image_names(folder: Path) -> list[str]:
    """The image files in a folder and its sub-folders, by extension: sorted paths from it on, with forward slashes.

    Hidden files and folders are passed over. Links to folders are followed, but no folder is entered twice.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    def enters(path: str) -> bool:
        real = os.path.realpath(path)
        known = real in entered
        entered.add(real)
        return not known

    names, entered = [], {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = [name for name in sorted(folders) if name[0] != "." and enters(os.path.join(parent, name))]
        found = [name for name in files if name[0] != "." and name.lower().endswith(EXTENSIONS)]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in found]
    return sorted(names)


def _described(folder: Path, file: Path) -> list[Entry]:
    """The images that metadata.jsonl names: file_name, perhaps label and group, one JSON object a line."""
    entries: dict[str, Entry] = {}
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = _entry(folder, line)
            if entry.name in entries:
                raise ValueError(f"file_name {entry.name} was named before")
            if entries and (entry.label is None) != (next(iter(entries.values())).label is None):
                raise ValueError("either every line has a label or none")
        except ValueError as error:
            raise DataError(f"{file}, line {number}: {error}") from error
        entries[entry.name] = entry
    if not entries:
        raise DataError(f"{file} names no images")
    return [entries[name] for name in sorted(entries)]


def _entry(folder: Path, line: bytes) -> Entry:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError("not an object with a file_name")
    path = PurePosixPath(row["file_name"])
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name {path} leads out of the folder")
    if not (folder / path).is_file():
        raise ValueError(f"file_name {path} does not exist")
    for key in ("label", "group"):
        if isinstance(row.get(key), bool) or not isinstance(row.get(key), str | int | None):
            raise ValueError(f"{key} is neither text nor a whole number")
    group = row.get("group")
    return Entry(path.as_posix(), row.get("label"), path.as_posix() if group is None else str(group))


def labels_and_classes(labels: list[str | int | None]) -> tuple[np.ndarray, list[str]]:
    """Class indices, and the names of the classes: whole numbers in their order, everything else as text."""
    if labels[0] is None:
        return np.zeros(len(labels), dtype=np.int64), []
    classes, indices = np.unique(np.array(labels), return_inverse=True)
    return indices.astype(np.int64), [str(name) for name in classes]


def size_and_checksum(path: Path) -> list[int]:
    """Size in bytes and CRC-32 of the first 64 KiB; nothing for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return [os.fstat(file.fileno()).st_size, zlib.crc32(file.read(2**16))]
    except OSError:
        return []
